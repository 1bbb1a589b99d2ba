"""The one exception that a command shows to its user as a single line."""

# What messages of torch, of CUDA's libraries, of numpy and of Python say where memory is missing.
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "_ALLOC_FAILED", "_ALLOCATION_FAILED")
OUT_OF_MEMORY += ("Unable to allocate", "MemoryError")


class UserError(Exception):
    """Something that the user can put right: the message names the file or option and the remedy."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was missing, of a GPU or of the machine; CUDA's libraries raise plain RuntimeErrors then."""
    told = isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY)
    return told or isinstance(error, MemoryError)


def reason(error: BaseException) -> str:
    """The first line of an exception's message, or its kind where it has none: for use inside a UserError's."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)

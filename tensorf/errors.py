"""The one exception that a command shows to its user as a single line."""


class UserError(Exception):
    """Something that the user can put right: the message names the file or option and the remedy."""


def reason(error: BaseException) -> str:
    """The first line of an exception's message, or its kind where it has none: for use inside a UserError's."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)

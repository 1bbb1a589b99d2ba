"""Why a model cannot be got from the hub, and what to do about it."""

from __future__ import annotations

import os

from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tensorf.errors import reason


def why_not(name: str, revision: str | None, error: BaseException, instead: str) -> str:
    """What follows "cannot get it from the hub", for a message of one line.

    name, revision: of the hub id. error: what was raised; diffusers and transformers wrap what the hub's client says.
    instead: options with a local FOLDER, and whatever else is left to somebody without a network.
    """
    if (told := _beyond_the_network(name, revision, error)) is not None:
        return f": {told}"
    why = "HF_HUB_OFFLINE is set" if os.environ.get("HF_HUB_OFFLINE") else reason(error)
    at = f" --revision {revision}" if revision is not None else ""
    return (
        f" ({why}): download it where there is a network, `hf download {name}{at} --local-dir FOLDER`, and pass "
        f"{instead}"
    )


def _beyond_the_network(name: str, revision: str | None, error: BaseException) -> str | None:
    """What is wrong, where a network alone would not help; None where it might."""
    for cause in _causes(error):
        if "No space left on device" in str(cause):  # an OSError, or what the hub's downloader in Rust says
            return f"the disk is full: make room in {constants.HF_HUB_CACHE}, or set HF_HOME to a folder elsewhere"
        if isinstance(cause, GatedRepoError):  # a RepositoryNotFoundError, too
            return f"it is gated: ask for access at https://huggingface.co/{name}, then log in with `hf auth login`"
        if isinstance(cause, RepositoryNotFoundError):
            return "there is no such model, or it is private: mind the spelling, or log in with `hf auth login`"
        if isinstance(cause, RevisionNotFoundError):
            return f"it has no revision {revision}"
        if isinstance(cause, EntryNotFoundError) and not isinstance(cause, LocalEntryNotFoundError):
            return f"it lacks what belongs to such a model ({reason(error)})"
        if getattr(getattr(cause, "response", None), "status_code", None) in (401, 403):
            return f"the hub refuses it ({reason(cause)}): log in with `hf auth login`, with a token that may read it"
    return None


def _causes(error: BaseException | None) -> list[BaseException]:
    """The exception, and those that it was raised from or while handling, the last one first."""
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found

"""Names of folders from prompts."""

from __future__ import annotations

import hashlib
import unicodedata

_LONGEST = 80  # bytes; a file's name may have 255, and other words are added


def slug(text: str) -> str:
    """Lower-case words of any alphabet, joined by hyphens: "A red flower!" -> "a-red-flower".

    A name longer than 80 bytes is cut, and ends in a hash of the text, so that long prompts have different names.
    """
    letters = unicodedata.normalize("NFC", text.lower())
    kept = (c if c.isalnum() or unicodedata.category(c)[0] == "M" else " " for c in letters)  # M: vowel signs
    words = "-".join("".join(kept).split())
    if len(words.encode()) > _LONGEST:
        digest = hashlib.sha256(words.encode()).hexdigest()[:8]
        words = words.encode()[: _LONGEST - 9].decode(errors="ignore").rstrip("-") + f"-{digest}"
    return words or "edit"

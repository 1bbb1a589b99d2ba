"""Which words of a prompt pocket has ever seen."""

from __future__ import annotations

from cds3d.pocket.world.capture import FILLERS, words
from cds3d.pocket.world.scenes import COLORS, GROUNDS, MATERIALS, SPECIES

_KNOWN = {*FILLERS, *SPECIES, *COLORS, *MATERIALS}
_KNOWN |= {name for names in SPECIES.values() for name in names}
_KNOWN |= {word for place in GROUNDS.values() for word in place.split()}


def unknown_words(*prompts: str) -> list[str]:
    """Words that are in no caption that pocket was trained on, each once, in order."""
    return list(dict.fromkeys(w for prompt in prompts for w in words(prompt) if w not in _KNOWN))


def known_words() -> list[str]:
    """All words that pocket has seen, in alphabetical order, without those that say nothing."""
    return sorted(_KNOWN - FILLERS)

"""What the page says: messages of `edit.py` in the names of the page's controls, as plain text."""

from __future__ import annotations

import re

# What messages of `edit.py` name, and what stands for it here. The first that fits is taken, of both.
_FORMS = {
    r"was begun with (ball|box)=.+?, not .+?(?=: resume)": r"was begun with another \1",
    r"\b(ball|box)=(?:\[[^\]]*\]|[-+\d][-+.,\de]*)(?!\w)": r"the \1",
    r"\b(?:ball|box|where)= is for": "Where is for",
    "--where finds masks by": "words need masks, and those",
    r"--where (?=\")": "the words ",
    "--src": "From",
    "--tgt": "To",
}
_NAMES = {
    "resume it with the same options, or pass overwrite=true": "tick Overwrite to do it anew",
    "go on from the last state with resume=true": "go on with Resume",
    "pass overwrite=true": "tick Overwrite",
    "with overwrite=true": "with Overwrite",
    "resume=true": "Resume",
    "overwrite=true": "Overwrite",
    "edit.iterations": "Iterations",
    "give output=FOLDER": "say To in other words",
    "give another output folder": "say To in other words",
    "a click in view.py, or at=, tells where a thing is": "click or tap a thing to put it there",
    ": lower carve.agreement, or check that masks fit the photos": ": choose other words, a ball or a box",
    " (zoom=0 takes whole views)": "",
}


def in_the_page(text: str) -> str:
    """A message of `edit.py` for somebody who has the page and no command."""
    for form, name in _FORMS.items():
        text = re.sub(form, name, text)
    for option, name in _NAMES.items():
        text = text.replace(option, name)
    return text


def plain(text: str) -> str:
    """Without what Markdown would take for markup."""
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~])", r"\\\1", text)

"""What a command may answer: it works, or it tells in one line of error what is wrong."""

from __future__ import annotations

import re

_ERROR = re.compile(r"^(\S+ )*error: \S")  # argparse puts the program's name before


def judge(code: int | None, crash: str | None, told: list[str]) -> list[str]:
    """A line for each thing that is wrong with an answer. crash: the last lines of a traceback."""
    if crash is not None or any(text.startswith("Traceback") for text in told):
        return [f"a traceback: {crash or told[-1:]}"]
    if code == 0:
        return []
    if code not in (1, 2):
        return [f"exit code {code}: {told[-1:]}"]
    errors = [text for text in told if _ERROR.match(text)]
    if len(errors) != 1 or told[-1] != errors[0]:
        return [f"not one line of error, which comes last: {told[-3:]}"]
    if "out of memory" in errors[0]:
        return [f"out of memory: {errors[0][:200]}"]
    return []

"""A script of a few lines that is called as a command is: words, then options; --help; errors in one line."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path

from cds3d.cli import tell
from tensorf.errors import UserError


def run_script(main: Callable, argv: list[str] | None = None) -> int:
    """Call `main` with the words of the command line, and with its key=value options last; returns the exit code.

    Words that are left out have main's defaults, so options may come without any. --help prints the docstring of the
    script.
    """
    argv = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & {*argv}:
        print(inspect.cleandoc(main.__globals__["__doc__"]))
        return 0
    tell()
    options = [word for word in argv if re.match(r"[\w.]+=", word) and not Path(word).exists()]
    words = [word for word in argv if word not in options]
    names = [p for p in inspect.signature(main).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    try:
        if len(words) > len(names):
            raise UserError(f"{words[len(names)]!r} is one word too many; see --help")
        main(*words, *(p.default for p in names[len(words) :]), *options)
        return 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print(f"\nstopped{f': {stop}' if str(stop) else ''}", file=sys.stderr)
        return 130

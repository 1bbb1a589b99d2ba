"""What all commands have in common when a program calls them, in a notebook or a loop, and not the command line.

@command
def edit_command(config: DictConfig) -> Path: ...
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import wraps
from typing import TypeVar

from omegaconf import DictConfig

from cds3d.holding import letting_go
from cds3d.options import check_assigned
from cds3d.threads import threads_of

Result = TypeVar("Result")


def command(function: Callable[..., Result]) -> Callable[..., Result]:
    """`function`, which is called NAME_command, on a copy of its configuration: commands fill in what is left open.

    The configuration comes first; other arguments are passed on.

    It has the CPU threads that `config.threads` says. When it ends, however it does, torch has the threads of before,
    and the folders that it worked in are free again. UserError for texts that cannot be read.
    """
    name = function.__name__.removesuffix("_command")

    @wraps(function)
    def on_a_copy(config: DictConfig, *more, **named) -> Result:
        config = copy.deepcopy(config)
        check_assigned(name, config)
        with threads_of(config), letting_go():
            return function(config, *more, **named)

    return on_a_copy

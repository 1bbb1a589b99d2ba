"""Loading models without what diffusers and transformers would tell on the way."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from diffusers.utils import logging as diffusers_logging
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars
from transformers.utils import logging as transformers_logging

_LIBRARIES = (diffusers_logging, transformers_logging)


@contextmanager
def quiet() -> Iterator[None]:
    """diffusers and transformers tell errors only, and show no progress bars; afterwards they do what they did before.

    Both settings are the process's: other threads are quiet meanwhile too.
    """
    before = [(library.get_verbosity(), library.is_progress_bar_enabled()) for library in _LIBRARIES]
    without_bars = are_progress_bars_disabled()  # of the hub's client, which transformers turns off and on with its own
    for library in _LIBRARIES:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        yield
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of the hub's client, where a variable turns its bars off
            for library, (verbosity, bars) in zip(_LIBRARIES, before, strict=True):
                library.set_verbosity(verbosity)
                if bars:
                    library.enable_progress_bar()
            if without_bars:
                disable_progress_bars()

"""Progress bars on stderr."""

from __future__ import annotations

from tqdm import tqdm


def progress(show: bool, over=None, **options) -> tqdm:
    """tqdm's bar, which is drawn only if `show`. over: the iterable, if any. options: tqdm's others.

    With TQDM_DISABLE=1 in the environment none is drawn: tqdm heeds that only where `disable` is not given.
    """
    return tqdm(over, **options) if show else tqdm(over, disable=True, **options)

"""Which options may differ when a run is resumed, and how two configurations are compared."""

from __future__ import annotations

from pathlib import Path

# Options whose absence says that an earlier version began the run: it goes on with today's.
NOT_IN_OLDER_RUNS = (".view_noise", ".exposure", ".lr_exposure", "guidance.name", "edit.exact")
# What a resume may change without a word, since no result changes.
SILENT_KEYS = (
    "resume",
    "overwrite",
    "output",
    "save_every",
    "video_frames",
    "video_width",
    "preview_every",
    "scene.outside",
    "guidance.image_scale_end",  # objective.scale_end counts
)
# What a resume may change, and metrics.json then tells: device and threads, and what an error message may advise.
TOLD_KEYS = (
    "device",
    "threads",
    "edit.lr",
    "edit.fit.lr",
    "edit.redraw.lr",
    "edit.redraw.scale",
    "field.lr_grid",
    "field.lr_network",
    "guidance.scale",
    "guidance.pds_scale",
    "guidance.dtype",
    "objective.scale",
    "objective.weight",
    "baseline.scale",
    # Of a region that is still to be found.
    "edit.region.mask_threshold",
    "edit.fit.agreement",
    "edit.fit.grow",
    "edit.volume.agreement",
    "edit.volume.grow",
)
# Paths may be spelled in several ways.
PATH_KEYS = ("capture", "run", "scene.root", "image", "mask", "views")


def same_path(key: str, old, new) -> bool:
    """Whether two spellings of a path option lead to the same place, as `scans/desk` and `./scans/desk/`."""
    both = isinstance(old, str) and isinstance(new, str)
    return key in PATH_KEYS and both and Path(old).resolve() == Path(new).resolve()


def flat_options(tree, prefix: str = "") -> dict:
    """Nested options as one dict: {"edit": {"lr": 0.01}} gives {"edit.lr": 0.01}."""
    if not isinstance(tree, dict):
        return {prefix[:-1]: tree}
    flat = {}
    for key, value in tree.items():
        flat |= flat_options(value, f"{prefix}{key}.")
    return flat

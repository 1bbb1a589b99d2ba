"""What editing needs of a radiance field. TensoRF is one kind of field; another is a class with these members.

`cds3d` renders, edits, saves and loads fields by `Renderable`, so that a new kind touches nothing there: write the
class, add it to KINDS (see docs/extending.md). Edits in a region need a `LocallyEditable` field.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from tensorf.cameras import Camera
from tensorf.checkpoint import load_checkpoint, read_kind
from tensorf.devices import usable_device
from tensorf.errors import UserError
from tensorf.precision import full_precision
from tensorf.space import Space


class FastView(Protocol):
    """One camera's rays, prepared so that rendering them again and again is cheap while surfaces stay in place.

    full: (H, W, 3) the prepared field's render. A view whose `color` shows another picture than the field's `render`
    once surfaces have moved may also have `exact_color`, with the same arguments, which does not (`edit.exact`).
    """

    full: Tensor

    def color(self, field: nn.Module, index: Tensor | None = None) -> Tensor:
        """(n, 3) colours of the rays `index` (n,) int64, or of all, by a copy of the prepared field; differentiable."""

    def surfaces(self, field: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
        """What is seen: positions (n, 3) in [-1, 1], their weights (n,) in the picture, and their rays (n,)."""


class Renderable(Protocol):
    """A field: an `nn.Module` with these members. It is copied with `copy.deepcopy`.

    space: where its coordinates lie, which depth maps and the consistency of views are measured in.
    """

    space: Space

    @property
    def device(self) -> torch.device: ...

    def render(self, camera: Camera) -> dict[str, Tensor]:
        """A whole view without gradients: color (H, W, 3) in [0, 1], opacity (H, W), depth (H, W) (`Space.depth`)."""

    def view(self, camera: Camera) -> FastView:
        """The camera's rays, prepared with this field as it is."""

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """All parameters by what they change: "density", "color" and "network"; the keys "density_lines" and
        "color_lines" are for parameters each of which changes a whole slice of the scene. Keys may be missing.
        """

    def save(self, path: str | Path) -> None:
        """Write everything that `load` needs to a safetensors file, atomically, with its kind in the header."""


class LocallyEditable(Renderable, Protocol):
    """A field whose edit can be kept inside a region of space, which consists of its cells.

    occupancy: (z, y, x) bool over positions in [-1, 1], which cells have anything in them.
    """

    occupancy: Tensor


_FILE = "field.safetensors"  # a run folder's field
# kind, as in the file's header -> loader (path, device)
KINDS = {"tensorf": load_checkpoint, "local": load_checkpoint, "official": load_checkpoint}


@full_precision
def load_field(path: str | Path, device: torch.device | str = "cpu") -> Renderable:
    """Read a field of any kind.

    path: its file, or the folder of a run, which has its field in field.safetensors. device: "auto" is the first GPU if
    there is one, else the CPU. UserError if the file is missing, damaged, or no field, and if there is no such device.
    """
    path, device = Path(path), usable_device(device)
    if path.is_dir():
        if not (path / _FILE).is_file():
            raise UserError(f"{path} is a folder without {_FILE}: name the field's file, or finish the run first")
        path = path / _FILE
    kind = read_kind(path)
    if kind not in KINDS:
        raise UserError(f"{path} holds a field of kind {kind!r}, which this version does not know: {', '.join(KINDS)}")
    return KINDS[kind](path, device)

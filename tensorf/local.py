"""A field that differs from another one inside a region of space only.

It holds an edited field: outside the region density and colour are the source's by construction, whatever the edit's
parameters are. The grids of TensoRF cannot do that by themselves, for each of their points belongs to many places.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor, nn

from tensorf.cameras import Camera
from tensorf.field import Field
from tensorf.occupancy import cell_index, grown
from tensorf.packed import split_indices
from tensorf.precision import full_precision
from tensorf.space import Space

_EMPTY = 1e-3  # opacity of a step below which a place counts as empty


class LocalField(nn.Module):
    """`target` inside the region, `source` outside.

    region: (z, y, x) bool over the source's box, in the cells of its occupancy. target: a copy of the source unless
    given. Its parameters are made trainable. Those of `source` here are frozen: it is a view of the given field, which
    shares its numbers and leaves the given one's own parameters as trainable as they are.

    Raises ValueError if the region has another shape than the occupancy.
    """

    def __init__(self, source: Field | LocalField, region: Tensor, target: Field | LocalField | None = None):
        super().__init__()
        if region.shape != source.occupancy.shape:
            raise ValueError(f"region {tuple(region.shape)} has to have the shape {tuple(source.occupancy.shape)}")
        self.source = frozen(source)
        self.target = (copy.deepcopy(source) if target is None else target).requires_grad_(True)
        self.register_buffer("region", region)
        self.register_buffer("occupancy", source.occupancy | region)

    @property
    def device(self) -> torch.device:
        return self.source.device

    @property
    def space(self) -> Space:
        return self.source.space

    @property
    def steps(self) -> int:
        return self.source.steps

    @property
    def step(self) -> float:
        return self.source.step

    def open(self, region: Tensor) -> None:
        """Take another region, of the same shape."""
        self.region, self.occupancy = region, self.source.occupancy | region

    @full_precision
    @torch.no_grad()
    def settle(self) -> None:
        """Remove from the occupancy the region's cells in which the target is empty: renders are faster then.

        Density is looked at in eight places of each cell. A cell stays if a neighbour is not empty.
        """
        shape = self.region.shape
        cell = self.region.flatten().nonzero()[:, 0]
        centers = cell_centers(shape, self.device)
        offsets = torch.tensor([-0.5, 0.5], device=self.device, dtype=torch.float32)  # of a cell from -1 to 1
        offsets = torch.cartesian_prod(offsets, offsets, offsets)
        size = torch.tensor(shape[::-1], device=self.device)
        filled = torch.zeros(shape, device=self.device, dtype=torch.float32)
        for part in cell.split(1 << 15):
            x = (centers[part][:, None] + offsets / size).view(-1, 3)
            opacity = -torch.expm1(-self.target.density(x) * self.step)
            filled.view(-1)[part] = opacity.view(len(part), -1).amax(1)
        self.occupancy = torch.where(self.region, grown(filled > _EMPTY, 1), self.source.occupancy)

    def pruned(self) -> LocalField:
        """The same field without parts that show nowhere; what is left is shared, not copied.

        An edit of an edit copies both of the fields that it starts from. Most often one of the two lies wholly inside
        the new region, or outside: all of them together would double with every edit.
        """
        return self._with(_visible(self.source, ~self.region), _visible(self.target, self.region))

    def _with(self, source: Field | LocalField, target: Field | LocalField) -> LocalField:
        fewer = copy.copy(self)
        fewer._modules = {"source": source, "target": target}
        return fewer

    def inside(self, x: Tensor) -> Tensor:
        """x (n, 3) in [-1, 1] -> (n,) bool: of the region."""
        return self.region.reshape(-1)[cell_index(self.region.shape, x)]

    def density(self, x: Tensor) -> Tensor:
        """As `Field.density`."""
        inside, outside = self._split(x)
        values = x.new_zeros(len(x)).index_copy(0, outside, self.source.density(x[outside]))
        return values.index_copy(0, inside, self.target.density(x[inside]))

    def color(self, x: Tensor, viewdirs: Tensor) -> Tensor:
        """As `Field.color`."""
        inside, outside = self._split(x)
        values = x.new_zeros(len(x), 3).index_copy(0, outside, self.source.color(x[outside], viewdirs[outside]))
        return values.index_copy(0, inside, self.target.color(x[inside], viewdirs[inside]))

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return split_indices(self.inside(x))

    def render(self, camera: Camera) -> dict[str, Tensor]:
        """As `Field.render`."""
        from tensorf.render import render_view  # the renderer imports what this file does

        return render_view(self, camera)

    def view(self, camera: Camera):
        """As `Field.view`."""
        from tensorf.visibility import View

        return View(self, camera)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The source's and the target's. Freeze the source's where it is not to be edited."""
        merged: dict[str, list[nn.Parameter]] = {}
        for part in (self.source, self.target):
            for name, parameters in part.parameter_groups().items():
                merged.setdefault(name, []).extend(parameters)
        return merged

    def total_variation(self) -> Tensor:
        """The source's and the target's."""
        return self.source.total_variation() + self.target.total_variation()

    def save(self, path: str | Path) -> None:
        """Write both fields and the region to one safetensors file (`checkpoint.save_field`)."""
        from tensorf.checkpoint import save_field

        save_field(self, path)


def frozen(field: Field | LocalField) -> Field | LocalField:
    """The field with parameters that are not trainable, over the same memory; the given one stays as it is."""
    shared = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in field.parameters()}
    shared |= {id(buffer): buffer for buffer in field.buffers()}
    return copy.deepcopy(field, shared)


def _visible(field: Field | LocalField, cells: Tensor) -> Field | LocalField:
    """A field with the values of `field` in these cells, (z, y, x) bool, made of as few fields as can be."""
    if not isinstance(field, LocalField):
        return field
    within, outside = cells & field.region, cells & ~field.region
    if not within.any():
        return _visible(field.source, outside)
    if not outside.any():
        return _visible(field.target, within)
    return field._with(_visible(field.source, outside), _visible(field.target, within))


def cell_centers(shape: torch.Size, device: torch.device) -> Tensor:
    """(cells, 3) the centres, in [-1, 1], of the cells of a grid of `shape` (z, y, x)."""
    axes = [(torch.arange(n, device=device, dtype=torch.float32) + 0.5) / n * 2 - 1 for n in shape]
    z, y, x = torch.meshgrid(*axes, indexing="ij")
    return torch.stack([x, y, z], -1).view(-1, 3)

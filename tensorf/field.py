"""The radiance field: tensor decompositions of density and colour features over a box.

TensoRF (Chen et al., ECCV 2022): equation 2 (CP: products of three vectors), equation 3 (VM: products of a matrix and a
vector), equation 6 (density is the sum over components; colour is decoded from the components' values).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tensorf.cameras import Camera
from tensorf.lookup import MODES, bilinear, grid_points_first, plane_line_products
from tensorf.shading import build_decoder
from tensorf.space import Space


@dataclass(frozen=True)
class FieldConfig:
    """What a field consists of. Density is softplus(gain x sum of components + shift).

    TensoRF has no gain (1). With it surfaces become opaque within hundreds of steps instead of thousands. A shift of
    -10 starts nearly empty; values nearer 0 start as fog.
    """

    decomposition: str  # "vm" or "cp"
    density_components: tuple[int, ...]  # of the modes xy-z, xz-y, yz-x; CP adds them up
    color_components: tuple[int, ...]
    decoder: str  # "mlp" (PyTorch) or "tcnn" (tinycudann)
    feature_dim: int  # width of the appearance features that the decoder gets
    hidden: int  # width of the decoder's layers
    frequencies: tuple[int, int]  # of the positional encoding of features and view directions
    density_shift: float
    density_gain: float

    def __post_init__(self):
        for name, known in (("decomposition", ("vm", "cp")), ("decoder", ("mlp", "tcnn"))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)} is unknown; use {' or '.join(known)}")
        for name in ("density_components", "color_components"):
            counts, least = getattr(self, name), 0 if self.decomposition == "cp" else 1
            if len(counts) != 3 or min(counts) < least or sum(counts) < 1:
                sums = " that add up to 1 or more" if least == 0 else ""
                raise ValueError(f"{name}={list(counts)} has to be three whole numbers of at least {least}{sums}")
        if len(self.frequencies) != 2 or min(self.frequencies) < 0:
            raise ValueError(f"frequencies={list(self.frequencies)} has to be two whole numbers of at least 0")
        if self.feature_dim < 3 or self.hidden < 1:
            raise ValueError(f"feature_dim={self.feature_dim} has to be at least 3, hidden={self.hidden} at least 1")


class VM(nn.Module):
    """Vector-matrix decomposition. planes[k]: (C_k, size of b, size of a); lines[k]: (C_k, size of c, 1)."""

    def __init__(self, components: tuple[int, ...], resolution: tuple[int, int, int], scale: float = 0.1):
        super().__init__()
        make = lambda *shape: nn.Parameter(grid_points_first(scale * torch.randn(*shape, dtype=torch.float32)))  # noqa: E731
        self.planes = nn.ParameterList(
            make(n, resolution[b], resolution[a]) for n, (a, b, _) in zip(components, MODES, strict=True)
        )
        self.lines = nn.ParameterList(make(n, resolution[c], 1) for n, (_, _, c) in zip(components, MODES, strict=True))

    def forward(self, x: Tensor) -> Tensor:
        """x (n, 3) in [-1, 1] -> (n, C), the modes' products side by side."""
        return plane_line_products(self.planes, self.lines, x, summed=False)

    def total(self, x: Tensor) -> Tensor:
        """x (n, 3) in [-1, 1] -> (n,), the sum of all products."""
        return plane_line_products(self.planes, self.lines, x, summed=True)

    @torch.no_grad()
    def resample(self, resolution: tuple[int, int, int]) -> None:
        for k, (a, b, c) in enumerate(MODES):
            self.planes[k] = _resized(self.planes[k], (resolution[b], resolution[a]))
            self.lines[k] = _resized(self.lines[k], (resolution[c], 1))

    @torch.no_grad()
    def crop(self, low: list[int], high: list[int]) -> None:
        """Keep grid points low..high (inclusive) of each axis."""
        for k, (a, b, c) in enumerate(MODES):
            plane, line = self.planes[k], self.lines[k]
            self.planes[k] = nn.Parameter(grid_points_first(plane[:, low[b] : high[b] + 1, low[a] : high[a] + 1]))
            self.lines[k] = nn.Parameter(grid_points_first(line[:, low[c] : high[c] + 1]))

    def total_variation(self) -> Tensor:
        """Mean squared difference of neighbours on the planes, summed over modes (TensoRF, section 4)."""
        return sum(
            (p[:, 1:] - p[:, :-1]).square().mean() + (p[:, :, 1:] - p[:, :, :-1]).square().mean() for p in self.planes
        )

    def l1(self) -> Tensor:
        return sum(p.abs().mean() for p in [*self.planes, *self.lines])


class CP(nn.Module):
    """CP decomposition. lines[axis]: (C, size of axis, 1)."""

    def __init__(self, components: tuple[int, ...], resolution: tuple[int, int, int], scale: float = 0.2):
        super().__init__()
        count = sum(components)
        self.lines = nn.ParameterList(
            nn.Parameter(scale * torch.randn(count, n, 1, dtype=torch.float32)) for n in resolution
        )

    def forward(self, x: Tensor) -> Tensor:
        """x (n, 3) in [-1, 1] -> (n, C)."""
        zero = torch.zeros_like(x[:, 0])
        a, b, c = (bilinear(line, torch.stack([zero, x[:, k]], -1)) for k, line in enumerate(self.lines))
        return (a * b * c).T

    def total(self, x: Tensor) -> Tensor:
        """x (n, 3) in [-1, 1] -> (n,), the sum of all products."""
        return self(x).sum(1)

    @torch.no_grad()
    def resample(self, resolution: tuple[int, int, int]) -> None:
        for k, n in enumerate(resolution):
            self.lines[k] = _resized(self.lines[k], (n, 1))

    @torch.no_grad()
    def crop(self, low: list[int], high: list[int]) -> None:
        for k in range(3):
            self.lines[k] = nn.Parameter(self.lines[k][:, low[k] : high[k] + 1].clone())

    def total_variation(self) -> Tensor:
        return sum((line[:, 1:] - line[:, :-1]).square().mean() for line in self.lines)

    def l1(self) -> Tensor:
        return sum(line.abs().mean() for line in self.lines)


def _resized(table: Tensor, size: tuple[int, int]) -> nn.Parameter:
    resized = F.interpolate(table[None], size=size, mode="bilinear", align_corners=True)[0]
    return nn.Parameter(grid_points_first(resized))


class Field(nn.Module):
    """Density and colour at points of a space.

    space: its geometry. resolution: grid points along x, y, z of the box. steps: samples along the longest ray.
    occupancy: (z, y, x) bool, which cells of the box are worth sampling; all True until it is measured.
    """

    def __init__(self, config: FieldConfig, space: Space, resolution: tuple[int, int, int], steps: int):
        super().__init__()
        grid = {"vm": VM, "cp": CP}[config.decomposition]
        self.config, self.space, self.resolution, self.steps = config, space, tuple(resolution), steps
        self._span = None, 0.0
        self.density_grid = grid(config.density_components, self.resolution)
        self.color_grid = grid(config.color_components, self.resolution)
        self.basis = nn.Linear(sum(config.color_components), config.feature_dim, bias=False, dtype=torch.float32)
        self.decoder = self._build_decoder(config)
        self.register_buffer("occupancy", torch.ones(1, 1, 1, dtype=torch.bool))

    def _build_decoder(self, config: FieldConfig) -> nn.Module:
        return build_decoder(config.decoder, config.feature_dim, config.hidden, config.frequencies)

    @property
    def device(self) -> torch.device:
        return self.basis.weight.device

    def _apply(self, fn, recurse=True):
        if (kind := fn(torch.empty(0, dtype=torch.float32)).dtype) != torch.float32:  # before anything is converted
            raise ValueError(f"a field stays float32: it cannot compute in {str(kind).removeprefix('torch.')}")
        super()._apply(fn, recurse)
        self.space = self.space.to(self.device)
        return self

    @property
    def t_span(self) -> float:
        """`Space.t_span`, cached for each box: reading it from a GPU would wait in every step of training."""
        if self._span[0] is not self.space.box:
            self._span = self.space.box, self.space.t_span
        return self._span[1]

    @property
    def step(self) -> float:
        """Between samples of a ray, in its parameter t."""
        return self.t_span / self.steps

    def render(self, camera: Camera) -> dict[str, Tensor]:
        """A whole view without gradients: color (H, W, 3), opacity (H, W), depth (H, W)."""
        from tensorf.render import render_view  # the renderer imports this file

        return render_view(self, camera)

    def view(self, camera: Camera):
        """The camera's rays, prepared for rendering copies of this field again and again (`visibility.View`)."""
        from tensorf.visibility import View

        return View(self, camera)

    def save(self, path: str | Path) -> None:
        """Write the field to a safetensors file (`checkpoint.save_field`)."""
        from tensorf.checkpoint import save_field

        save_field(self, path)

    def density(self, x: Tensor) -> Tensor:
        """x (n, 3) in [-1, 1] -> (n,) >= 0; the opacity of a sample of length `step` is 1 - exp(-density step)."""
        raw = self.config.density_gain * self.density_grid.total(x) + self.config.density_shift
        return F.softplus(raw) * self.space.density_scale

    def color(self, x: Tensor, viewdirs: Tensor) -> Tensor:
        """x (n, 3) in [-1, 1], viewdirs (n, 3) unit -> (n, 3) in [0, 1]."""
        features = self.basis(self.color_grid(x))
        return self.decoder(features, viewdirs)

    def total_variation(self) -> Tensor:
        """Mean squared difference of neighbours on the grids of density, a number."""
        return self.density_grid.total_variation()

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters by what they are: "density" and "color" grids, and the "network" from features to colour.

        "density_lines" and "color_lines" are the lines of VM's grids, each of whose points stands for a whole slice of
        the box; CP, whose grids are nothing but lines, has none there.
        """
        groups = {"network": [*self.basis.parameters(), *self.decoder.parameters()]}
        for name, grid in (("density", self.density_grid), ("color", self.color_grid)):
            lines = list(grid.lines) if isinstance(grid, VM) else []
            groups[name + "_lines"] = lines
            groups[name] = [p for p in grid.parameters() if not any(p is line for line in lines)]
        return groups

    def resample(self, resolution: tuple[int, int, int], steps: int) -> None:
        """Change the grids' resolution; parameters are new objects afterwards, so optimisers have to be rebuilt."""
        for grid in (self.density_grid, self.color_grid):
            grid.resample(resolution)
        self.resolution, self.steps = tuple(resolution), steps

    @torch.no_grad()
    def shrink(self, box: Tensor) -> None:
        """Crop to the grid points around `box` (2, 3), field coordinates. The step does not change, so rates stay.

        Parameters are new objects afterwards, so optimisers have to be rebuilt.
        """
        size = torch.tensor(self.resolution, device=box.device)
        low, high = ((self.space.normalise(corner) + 1) / 2 * (size - 1) for corner in box)
        low, high = low.floor().long().clamp(min=0), torch.minimum(high.ceil().long(), size - 1)
        low = torch.minimum(low, size - 2)  # two points at least
        high = torch.maximum(high, low + 1)
        spacing = (self.space.box[1] - self.space.box[0]) / (size - 1)
        corner = self.space.box[0]
        new_box = torch.stack([corner + low * spacing, corner + high * spacing])
        step = self.step
        for grid in (self.density_grid, self.color_grid):
            grid.crop(low.tolist(), high.tolist())
        self.space = self.space.with_box(new_box)
        self.resolution = tuple((high - low + 1).tolist())
        self.steps = max(1, round(self.space.t_span / step))  # as many as before where rays do not end at the box
        self.occupancy = torch.ones(1, 1, 1, dtype=torch.bool, device=box.device)

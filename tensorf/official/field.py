"""A field that computes as the code of TensoRF's authors does: density, colour, and where rays are sampled.

It keeps their tensors as they are. `tensorf.field.Field` differs: its decoder has a diffuse shortcut, its density a
gain, and NDC other units.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tensorf.cameras import Camera
from tensorf.field import Field
from tensorf.official.shading import OfficialShading

ACTIVATIONS = ("softplus", "relu")
_AT_ONCE = 1 << 16  # colours: every sample of some weight has one, which for a chunk of rays would take gigabytes


@dataclass(frozen=True)
class OfficialConfig:
    """decomposition: "vm" or "cp". Components: of each mode, as `FieldConfig`'s; CP has them all in the first.

    shading, feature_dim, hidden, frequencies: `OfficialShading`'s. activation: of density, "softplus" (of the sum of
    components + density_shift) or "relu" (of the sum). distance_scale: factor on (density x step).

    Raises ValueError for what their code does not know.
    """

    decomposition: str
    density_components: tuple[int, int, int]
    color_components: tuple[int, int, int]
    shading: str
    feature_dim: int
    hidden: int
    frequencies: tuple[int, int, int]
    activation: str
    density_shift: float
    distance_scale: float

    def __post_init__(self):
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"fea2denseAct {self.activation!r} is unknown: {' and '.join(ACTIVATIONS)} are known")
        if min(self.frequencies) < 0:
            raise ValueError(f"encodings of {self.frequencies} frequencies make no sense")


class OfficialField(Field):
    """config: an `OfficialConfig`; space: an `OfficialSpace`; steps: samples on the longest ray."""

    def _build_decoder(self, config: OfficialConfig) -> nn.Module:
        return OfficialShading(config.shading, config.feature_dim, config.hidden, config.frequencies)

    @property
    def step(self) -> float:
        """Between samples of a ray, in its parameter t."""
        return self.space.interval

    def density(self, x: Tensor) -> Tensor:
        """As `Field.density`."""
        raw = self.density_grid.total(x)
        relu = self.config.activation == "relu"
        return self.config.distance_scale * (F.relu(raw) if relu else F.softplus(raw + self.config.density_shift))

    def color(self, x: Tensor, viewdirs: Tensor) -> Tensor:
        """x (n, 3) in [-1, 1], viewdirs (n, 3) unit -> (n, 3); with SH and RGB they may leave [0, 1]."""
        if not torch.is_grad_enabled() and len(x) > _AT_ONCE:
            parts = zip(x.split(_AT_ONCE), viewdirs.split(_AT_ONCE), strict=True)
            return torch.cat([self.color(*part) for part in parts])
        return self.decoder(self.basis(self.color_grid(x)), viewdirs, x)

    @torch.no_grad()
    def render(self, camera: Camera) -> dict[str, Tensor]:
        """As `Field.render`."""
        rendered = super().render(camera)
        return rendered | {"color": rendered["color"].clamp(0, 1)}

"""The authors' five ways from appearance features to a colour."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tensorf.shading import encode

MODES = ("MLP_Fea", "MLP_PE", "MLP", "SH", "RGB")
_SH = (0.28209479177387814, 0.4886025119029199, 1.0925484305920792, 0.31539156525252005, 0.5462742152960396)


class OfficialShading(nn.Module):
    """A network on features, direction, and encodings of one or both (MLP_Fea), of the position (MLP_PE), or of the
    direction alone (MLP); spherical harmonics of degree 2 (SH); or the features themselves (RGB).

    frequencies: of the encodings of features, position and direction. Raises ValueError for what does not fit.
    """

    def __init__(self, mode: str, feature_dim: int, hidden: int, frequencies: tuple[int, int, int]):
        super().__init__()
        if mode not in MODES:
            raise ValueError(f"shading {mode!r} is unknown: {', '.join(MODES)} are known")
        needed = {"SH": 27, "RGB": 3}.get(mode, feature_dim)
        if feature_dim != needed:
            raise ValueError(f"shading {mode} needs {needed} features, not {feature_dim}")
        self.mode, self.frequencies = mode, frequencies
        if mode.startswith("MLP"):
            of_features, of_position, of_direction = frequencies
            width = feature_dim + 3 + 6 * of_direction
            # The authors declare MLP_PE three inputs wider than what they give it, which cannot run: only networks
            # whose width was put right can come here.
            width += {"MLP_Fea": 2 * of_features * feature_dim, "MLP_PE": 6 * of_position}.get(mode, 0)
            sizes = ((width, hidden), (hidden, hidden), (hidden, 3))
            first, second, last = (nn.Linear(*size, dtype=torch.float32) for size in sizes)
            self.mlp = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), last)

    def forward(self, features: Tensor, viewdirs: Tensor, x: Tensor) -> Tensor:
        """features (n, feature_dim), viewdirs (n, 3) unit, x (n, 3) in [-1, 1] -> (n, 3), of SH and RGB any number."""
        if self.mode == "RGB":
            return features
        if self.mode == "SH":
            return torch.relu((features.view(-1, 3, 9) * harmonics(viewdirs)[:, None]).sum(-1) + 0.5)
        of_features, of_position, of_direction = self.frequencies
        inputs = [features, viewdirs]
        if self.mode == "MLP_Fea":
            inputs.append(_waves(features, of_features))
        if self.mode == "MLP_PE":
            inputs.append(_waves(x, of_position))
        inputs.append(_waves(viewdirs, of_direction))
        return torch.sigmoid(self.mlp(torch.cat(inputs, 1)))


def _waves(x: Tensor, frequencies: int) -> Tensor:
    """(n, d) -> (n, 2 d frequencies): `encode` without x itself."""
    return encode(x, frequencies)[:, x.shape[1] :]


def harmonics(d: Tensor) -> Tensor:
    """(n, 3) unit -> (n, 9): real spherical harmonics up to degree 2, in PlenOctrees' order and with its signs."""
    x, y, z = d.unbind(1)
    zero, one, two, mid, last = _SH
    rows = [zero + 0 * x, -one * y, one * z, -one * x]
    rows += [two * x * y, -two * y * z, mid * (2 * z * z - x * x - y * y), -two * x * z, last * (x * x - y * y)]
    return torch.stack(rows, 1)

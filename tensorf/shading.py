"""Colour decoders: appearance features and a view direction become a colour (TensoRF, section 4.2).

The first three features are a diffuse colour by themselves, as logits, and the network adds the rest (SNeRG, Hedman et
al., ICCV 2021, divides colours likewise). A network that has learnt the colours of one scene has no way to others: from
red there are features for brown and grey, but hardly for blue. With the shortcut an edit reaches every colour.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tensorf.errors import UserError


def build_decoder(kind: str, feature_dim: int, hidden: int, frequencies: tuple[int, int]) -> nn.Module:
    """kind: "mlp" or "tcnn". UserError for tcnn where it cannot work."""
    return {"mlp": MLPDecoder, "tcnn": TcnnDecoder}[kind](feature_dim, hidden, frequencies)


def encode(x: Tensor, frequencies: int) -> Tensor:
    """(n, d) -> (n, d + 2 d frequencies): x, then sines and cosines of x times 1, 2, 4, ..."""
    if frequencies == 0:
        return x
    scaled = (x[..., None] * 2.0 ** torch.arange(frequencies, device=x.device, dtype=x.dtype)).flatten(1)
    return torch.cat([x, scaled.sin(), scaled.cos()], -1)


class MLPDecoder(nn.Module):
    """Two hidden layers with ReLU, the diffuse colour added, a sigmoid at the end."""

    def __init__(self, feature_dim: int, hidden: int, frequencies: tuple[int, int]):
        super().__init__()
        self.frequencies = frequencies
        width = feature_dim * (1 + 2 * frequencies[0]) + 3 * (1 + 2 * frequencies[1])
        self.layers = nn.Sequential(
            nn.Linear(width, hidden, dtype=torch.float32),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, hidden, dtype=torch.float32),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, 3, dtype=torch.float32),
        )
        nn.init.zeros_(self.layers[-1].bias)

    def forward(self, features: Tensor, viewdirs: Tensor) -> Tensor:
        """features (n, feature_dim), viewdirs (n, 3) -> (n, 3) in [0, 1]."""
        inputs = torch.cat([encode(features, self.frequencies[0]), encode(viewdirs, self.frequencies[1])], 1)
        return torch.sigmoid(features[:, :3] + self.layers(inputs))


class TcnnDecoder(nn.Module):
    """The same network as one fused CUDA kernel of tinycudann (no biases; widths 16, 32, 64 or 128)."""

    def __init__(self, feature_dim: int, hidden: int, frequencies: tuple[int, int]):
        super().__init__()
        try:
            import tinycudann
        except (ImportError, OSError) as error:
            raise UserError(
                "decoder=tcnn needs tinycudann, which is not installed (see github.com/NVlabs/tiny-cuda-nn); "
                "decoder=mlp needs nothing"
            ) from error
        if not torch.cuda.is_available():
            raise UserError("decoder=tcnn needs a CUDA device; use decoder=mlp here")
        self.frequencies = frequencies
        width = feature_dim * (1 + 2 * frequencies[0]) + 3 * (1 + 2 * frequencies[1])
        self.network = tinycudann.Network(
            n_input_dims=width,
            n_output_dims=3,
            network_config={
                "otype": "FullyFusedMLP",
                "activation": "ReLU",
                "output_activation": "None",
                "n_neurons": hidden,
                "n_hidden_layers": 2,
            },
        )

    def forward(self, features: Tensor, viewdirs: Tensor) -> Tensor:
        inputs = torch.cat([encode(features, self.frequencies[0]), encode(viewdirs, self.frequencies[1])], 1)
        return torch.sigmoid(features[:, :3] + self.network(inputs).float())

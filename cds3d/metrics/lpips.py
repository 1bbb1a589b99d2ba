"""LPIPS, version 0.1 (Zhang et al., 2018): how different do two pictures look?

The trunk is torchvision's VGG-16, AlexNet or SqueezeNet 1.1, written here in plain torch; its weights are a file that
you bring. The trained heads, a few kilobytes, come with torchmetrics.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from cds3d.metrics.pretrained import pixels
from tensorf.errors import UserError, reason

_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
# The layers of torchvision's `features` after which activations are compared.
_TAPS = {"vgg": (3, 8, 15, 22, 29), "alex": (1, 4, 7, 9, 11), "squeeze": (1, 4, 7, 9, 10, 11, 12)}
_LEAST = 32  # pixels: below this AlexNet's last layers have no positions
HOW = "torchvision's vgg16, alexnet or squeezenet1_1 weights, as .pth or .safetensors (see docs/metrics.md)"


class Lpips:
    """LPIPS of one trunk, loaded once and asked many times. `net` says which: vgg, alex or squeeze."""

    def __init__(self, path: str | Path, device: torch.device, option: str = "--lpips"):
        """path: the trunk's weights, a .pth or .safetensors file with torchvision's names (`features.0.weight`, ...).

        Which trunk it is follows from the shapes. option: what the user set, for messages. Raises UserError if the file
        is not there, cannot be read, or holds another network.
        """
        self.device = device
        weights = _read(Path(path), option)
        self.net = _kind(weights, path, option)
        self._layers = _TRUNKS[self.net]()
        try:
            self._layers.load_state_dict(weights)
        except RuntimeError as error:
            raise UserError(
                f"{option} {path} is no {self.net} of torchvision ({reason(error)}): bring {HOW}"
            ) from error
        self._layers.to(device).eval().requires_grad_(False)
        self._heads = [w.to(device) for w in _heads(self.net)]

    def distance(self, image: Tensor, reference: Tensor) -> float:
        """LPIPS of two pictures (H, W, 3) in [0, 1] of one size, at that size: 0 for equal ones, about 1 for unlike.

        ValueError if their sizes differ, UserError if a side is shorter than 32 pixels.
        """
        return float(sum(layer.mean() for layer in self._differences(image, reference)))

    def distance_map(self, image: Tensor, reference: Tensor) -> Tensor:
        """(H, W) LPIPS of each place, layers resized bilinearly to the pictures' size, on the CPU. As `distance`."""
        size = image.shape[:2]
        maps = [
            nn.functional.interpolate(layer[None, None], size, mode="bilinear", align_corners=False)[0, 0]
            for layer in self._differences(image, reference)
        ]
        return torch.stack(maps).sum(0).cpu()

    @torch.no_grad()
    def _differences(self, image: Tensor, reference: Tensor) -> list[Tensor]:
        """One map (h, w) per layer: weighted squared differences of the channels, which have unit length."""
        if image.shape != reference.shape:
            raise ValueError(f"pictures of one size are needed, not {tuple(image.shape)} and {tuple(reference.shape)}")
        if min(image.shape[:2]) < _LEAST:
            raise UserError(f"LPIPS needs pictures of at least {_LEAST}x{_LEAST} pixels, not {tuple(image.shape[:2])}")
        pairs = zip(self._activations(image), self._activations(reference), self._heads)
        return [(head * (a - b).square()).sum(0) for a, b, head in pairs]

    def _activations(self, image: Tensor) -> list[Tensor]:
        shift, scale = (torch.tensor(v, device=self.device).view(1, 3, 1, 1) for v in (_SHIFT, _SCALE))
        x = (pixels(image, self.device) * 2 - 1 - shift) / scale
        found = []
        taps = _TAPS[self.net]
        for number, layer in enumerate(self._layers[: taps[-1] + 1]):
            x = layer(x)
            if number in taps:
                found.append(x[0] / (x[0].norm(dim=0, keepdim=True) + 1e-10))
        return found


def _read(path: Path, option: str) -> dict[str, Tensor]:
    """The trunk's weights without the prefix `features.`; a classifier's are left out. No pickle is run."""
    if not path.is_file():
        raise UserError(f"{option} {path}: no such file; bring {HOW}")
    try:
        if path.suffix == ".safetensors":
            weights = load_file(path)
        else:
            weights = torch.load(path, map_location="cpu", weights_only=True)
        return {k.removeprefix("features."): v for k, v in weights.items() if k.startswith("features.")}
    except Exception as error:  # torn files and pickles that would run code: torch raises many kinds
        raise UserError(f"{option} {path} cannot be read as weights ({reason(error)}): bring {HOW}") from error


def _kind(weights: dict[str, Tensor], path: str | Path, option: str) -> str:
    if "3.squeeze.weight" in weights:
        return "squeeze"
    first = tuple(weights["0.weight"].shape) if "0.weight" in weights else ()
    kinds = {(64, 3, 3, 3): "vgg", (64, 3, 11, 11): "alex"}
    if first not in kinds:
        raise UserError(f"{option} {path} is neither a VGG-16 nor an AlexNet nor a SqueezeNet 1.1: bring {HOW}")
    return kinds[first]


def _heads(net: str) -> list[Tensor]:
    """(C, 1, 1) per layer: the trained weights of the channels, from torchmetrics' files."""
    # torchmetrics' own module is not imported: it wants torchvision.
    package = Path(find_spec("torchmetrics").origin).parent
    path = package / "functional" / "image" / "lpips_models" / f"{net}.pth"
    if not path.is_file():
        raise UserError(f"{path} is missing: install torchmetrics 1.2 or later, whose LPIPS heads are used")
    weights = torch.load(path, map_location="cpu", weights_only=True)
    return [weights[f"lin{k}.model.1.weight"][0] for k in range(len(_TAPS[net]))]


# --- torchvision's `features`, layer by layer


def _vgg16() -> nn.Sequential:
    layers: list[nn.Module] = []
    channels = 3
    for width, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(count):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2, 2))
    return nn.Sequential(*layers)


def _alexnet() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2)),
    )


class _Fire(nn.Module):
    def __init__(self, channels: int, squeezed: int, expanded: int):
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze(x).relu()
        return torch.cat([self.expand1x1(x), self.expand3x3(x)], 1).relu()


def _squeezenet() -> nn.Sequential:
    def pool() -> nn.MaxPool2d:
        return nn.MaxPool2d(3, 2, ceil_mode=True)

    return nn.Sequential(
        *(nn.Conv2d(3, 64, 3, stride=2), nn.ReLU(), pool(), _Fire(64, 16, 64), _Fire(128, 16, 64)),
        *(pool(), _Fire(128, 32, 128), _Fire(256, 32, 128)),
        *(pool(), _Fire(256, 48, 192), _Fire(384, 48, 192), _Fire(384, 64, 256), _Fire(512, 64, 256)),
    )


_TRUNKS = {"vgg": _vgg16, "alex": _alexnet, "squeeze": _squeezenet}

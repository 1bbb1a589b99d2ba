"""Structure distance: do two pictures have the same layout, whatever their colours? (Tumanyan et al., Splice, 2022)"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import ViTModel

from cds3d.metrics.pretrained import load_network, pixels

EXAMPLE = "facebook/dino-vitb8"
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
_SHORTER, _LONGEST = 224, 480  # pixels: Splice's resizing
_KEYS = ("attention.k_proj", "attention.attention.key")  # the key projections' names in transformers 5 and 4


class Dino:
    """A DINO vision transformer, loaded once and asked many times."""

    def __init__(self, path: str, device: torch.device, antialias: bool = True, option: str = "--dino"):
        """path: a hub id such as "facebook/dino-vitb8", or a local folder of the same files.

        antialias: of the bilinear resizing. torchvision's own default was off before version 0.17 and is on since.
        option: what the user set, for messages. Raises UserError if the model cannot be loaded.
        """
        self.device, self.antialias = device, antialias
        more = {"add_pooling_layer": False}
        self._model = load_network(ViTModel, path, option=option, example=EXAMPLE, device=device, **more)
        self._projection = [m for name, m in self._model.named_modules() if name.endswith(_KEYS)][-1]

    @torch.no_grad()
    def keys(self, image: Tensor) -> Tensor:
        """(H, W, 3) in [0, 1] -> keys (tokens, D) of the last layer, heads concatenated, the class token first.

        The shorter side is resized to 224 pixels, the longer one to no more than 480; a rim narrower than a patch is
        not seen. On `device`.
        """
        x = pixels(image, self.device)
        size = _resized(*x.shape[2:])
        x = F.interpolate(x, size, mode="bilinear", align_corners=False, antialias=self.antialias)
        mean, std = (torch.tensor(v, device=self.device).view(1, 3, 1, 1) for v in (_MEAN, _STD))
        caught: list[Tensor] = []
        handle = self._projection.register_forward_hook(lambda _module, _inputs, output: caught.append(output))
        try:
            self._model(pixel_values=(x - mean) / std, interpolate_pos_encoding=True)
        finally:
            handle.remove()
        return caught[0][0]

    def self_similarity(self, image: Tensor) -> Tensor:
        """(H, W, 3) in [0, 1] -> (tokens, tokens): cosines of the keys, 785 tokens for a square picture and ViT-B/8."""
        unit = F.normalize(self.keys(image), dim=1)
        return unit @ unit.T

    def structure_distance(self, image: Tensor, reference: Tensor) -> float:
        """Mean squared difference of the two self-similarities: 0 for equal structure. ValueError if sizes differ."""
        if image.shape != reference.shape:
            raise ValueError(f"pictures of one size are needed, not {tuple(image.shape)} and {tuple(reference.shape)}")
        return float((self.self_similarity(image) - self.self_similarity(reference)).square().mean())


def _resized(height: int, width: int) -> tuple[int, int]:
    """torchvision's Resize(224, max_size=480)."""
    short, long = min(height, width), max(height, width)
    shorter, longer = _SHORTER, int(_SHORTER * long / short)
    if longer > _LONGEST:
        shorter, longer = int(_LONGEST * shorter / longer), _LONGEST
    return (shorter, longer) if height <= width else (longer, shorter)

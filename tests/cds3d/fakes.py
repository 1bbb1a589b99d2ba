"""Stand-ins for a diffusion model whose answers are known in closed form, and options that make a command tiny."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from cds3d.objectives.objective import Prompts

# Options that make a command's work tiny. One pruning: it casts 60,000 rays. density_shift: fog, so that all is seen.
TINY_SCENE = ["scene.width=64", "threads=1", "video_frames=2"]
TINY_FIELD = [
    "field.iterations=8",
    "field.batch=64",
    "field.resolution=16",
    "field.prune_at=[0.5]",
    "field.density_shift=0",
]

PROMPTS = Prompts(*(torch.full((1, 1, 1), v) for v in (0.0, 2.0, 3.0)))  # null, source, target: one number each


@dataclass
class LinearDenoiser:
    """eps(z_t, y) = gain z_t + y, where y is the text's one number; z_t = 0.6 z + 0.8 noise whatever t.

    Its one feature map is the square of z_t, so that the contrastive loss has a gradient that is not constant.
    """

    gain: float = 0.5
    calls: list = field(default_factory=list)
    aside = None

    def add_noise(self, z, noise, t):
        self.calls.append(("noise", t, noise.clone()))
        return 0.6 * z + 0.8 * noise

    def predict(self, z_t, t, text, features=None):
        self.calls.append(("predict", t, len(z_t), features))
        output = self.gain * z_t + text.view(-1, 1, 1, 1)
        return output, ([output] if features == "score" else [z_t**2] if features else [])


class LinearGuidance(LinearDenoiser):
    """Also encodes images: a latent is the mean of its 8x8 pixels in [-1, 1], three channels; odd rims are cut off."""

    device = torch.device("cpu")

    def encode_image(self, image):
        self.calls.append(("encode", image.requires_grad, tuple(image.shape[2:])))
        return F.avg_pool2d(image * 2 - 1, 8)

    def decode_image(self, z):
        return (F.interpolate(z, scale_factor=8) / 2 + 0.5).clamp(0, 1)

    def count(self, kind):
        return sum(call[0] == kind for call in self.calls)


class FixedGradient:
    """An objective that answers with one number everywhere, and with `bad` from call `at` on."""

    def __init__(self, value=1.0, bad=float("nan"), at=10**9):
        self.value, self.bad, self.at, self.calls = value, bad, at, 0

    def begin(self, model, z_src, prompts):
        return None

    def gradient(self, model, z_tgt, begun, prompts):
        self.calls += 1
        return torch.full_like(z_tgt, self.bad if self.calls > self.at else self.value), {"t": 0}

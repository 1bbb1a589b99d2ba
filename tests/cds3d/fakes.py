"""Stand-ins for a diffusion model whose answers are known in closed form, and options that make a command tiny."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from cds3d.guidance.prior import Pending, Prediction
from cds3d.guidance.text import Prompt
from cds3d.objectives.objective import Draw, Prompts, Step

# Options that make a command's work tiny. One pruning: it casts rays. density_shift: fog, so that all is seen.
TINY_SCENE = ["scene.width=64", "threads=1", "video_frames=2"]
TINY_FIELD = [
    "field.iterations=8",
    "field.batch=64",
    "field.resolution=16",
    "field.prune_at=[0.5]",
    "field.prune_rays=20000",
    "field.final_rays=40000",
    "field.density_shift=0",
]

# Null, source, target: one number each.
PROMPTS = Prompts(*(Prompt(torch.full((1, 1, 1), v)) for v in (0.0, 2.0, 3.0)))


@dataclass
class LinearDenoiser:
    """eps(z_t, y) = gain z_t + y, where y is the text's one number; z_t = 0.6 z + 0.8 noise whatever t.

    Its one feature map is the square of z_t, so that the contrastive loss has a gradient that is not constant.
    calls: ("noise", t, noise), and ("predict", t, queries of one forward, features) as they come.
    """

    gain: float = 0.5
    calls: list = field(default_factory=list)
    alphas = torch.full((1000,), 0.36)
    beside_others = staticmethod(nullcontext)

    def noised(self, z, t, noise):
        self.calls.append(("noise", t, noise.clone()))
        return 0.6 * z + 0.8 * noise

    def denoised(self, z_t, t, noise):
        return (z_t - 0.8 * noise) / 0.6

    def embed(self, text):
        return Prompt(torch.full((1, 1, 1), float(len(text))))

    def ask(self, *queries):
        return self.gather(self.submit(*queries))[0]

    def submit(self, *queries):
        return Pending(queries)

    def gather(self, *pending):
        frozen = [q for p in pending for q in p.queries if not q.grad]
        if frozen:
            kinds = {q.features for q in frozen if q.features}
            self.calls.append(("predict", frozen[0].t, len(frozen), next(iter(kinds), None)))
        return [[self._answer(q) for q in p.queries] for p in pending]

    def _answer(self, query):
        if query.grad:
            self.calls.append(("predict", query.t, 1, query.features))
        with torch.set_grad_enabled(query.grad):
            noise = self.gain * query.z_t + query.prompt.tokens.view(1, 1, 1, 1)
            maps = {"score": (noise[0],), None: ()}.get(query.features, (query.z_t[0] ** 2,))
        return Prediction(noise, maps)


class LinearPrior(LinearDenoiser):
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
    """An objective that answers with one number everywhere, and with `bad` from call `bad_from` on."""

    t_min = t_max = 0

    def __init__(self, value=1.0, bad=float("nan"), bad_from=10**9):
        self.value, self.bad, self.bad_from, self.calls = value, bad, bad_from, 0

    def at(self, progress):
        return self

    def draw(self, latent, progress, generator=None):
        return Draw(0, torch.zeros_like(latent))

    def gradient(self, prior, pair, prompts, draw):
        self.calls += 1
        return Step(torch.full_like(pair.target(), self.bad if self.calls > self.bad_from else self.value), {"t": 0})


@dataclass
class TwoLatents:
    """A pair of given latents (1, C, h, w)."""

    source: torch.Tensor
    goal: torch.Tensor

    def target(self):
        return self.goal

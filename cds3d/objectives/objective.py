"""What all objectives share: a step's draw and result, the prompts, and the options that every method has."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cds3d.guidance.prior import Prior
from cds3d.guidance.text import Prompt
from cds3d.subjects import Pair
from tensorf.errors import UserError


@dataclass(frozen=True)
class Prompts:
    """The empty, the source and the target prompt, embedded."""

    null: Prompt
    source: Prompt
    target: Prompt

    @staticmethod
    def of(prior: Prior, source: str, target: str) -> Prompts:
        """UserError if the prior cannot tell source and target apart."""
        prompts = Prompts(prior.embed(""), prior.embed(source), prior.embed(target))
        if torch.equal(prompts.source.tokens, prompts.target.tokens):
            raise UserError(
                "the source prompt (--src) and the target prompt (--tgt) are the same for the text encoder, which "
                "reads the beginning of a text: let them differ there"
            )
        return prompts


@dataclass(frozen=True)
class Draw:
    """What a step draws at random: timestep t, and noise (1, C, h, w), which both branches share.

    generator: for what `gradient` draws itself, as patches are; None is torch's global one.
    """

    t: int
    noise: Tensor
    generator: torch.Generator | None = None


@dataclass(frozen=True)
class Step:
    """gradient: dL/dz (1, C, h, w), float32, of the target latent.

    figures: numbers to log. Tensors of one number among them stay where they are: `fetched` gets all at once.
    """

    gradient: Tensor
    figures: dict[str, float | Tensor]


@dataclass(frozen=True)
class Objective:
    """Options of every objective; a subclass adds its own and defines `gradient`.

    Guidance goes beyond what the prompt's pictures look like: colours get too strong, and what the prompt does not name
    drifts. A scale that falls during the edit lets the picture come back.

    Raises ValueError for options that make no sense.
    """

    scale: float  # classifier-free guidance, at the start
    scale_end: float | None  # the same at the end, with a straight line between; None keeps `scale`
    score_scale: float | None  # factor of the noise difference, per latent element; None is the authors' 2000 / (h w)
    t_min: int  # range of t, inclusive
    t_max: int
    t_order: str  # "random": t is uniform; "falling": from t_max down to t_min in the course of the edit

    def __post_init__(self):
        if self.t_order not in ("random", "falling"):
            raise ValueError(f"t_order={self.t_order} is unknown; use random or falling")
        if not math.isfinite(self.scale):
            raise ValueError(f"scale={self.scale} has to be a number")
        if self.scale_end is not None and not math.isfinite(self.scale_end):
            raise ValueError(f"scale_end={self.scale_end} has to be a number, or null")
        if self.score_scale is not None and not self.score_scale > 0:
            raise ValueError(f"score_scale={self.score_scale} has to be above 0, or null")

    def at(self, progress: float) -> Objective:
        """This objective with the guidance that it has at this progress of an edit, in [0, 1]."""
        if self.scale_end is None:
            return self
        return replace(self, scale=self.scale + progress * (self.scale_end - self.scale))

    def gradient(self, prior: Prior, pair: Pair, prompts: Prompts, draw: Draw) -> Step:
        """One step's gradient on the target latent of `pair`. It leaves the pair, and all parameters, as they are."""
        raise NotImplementedError

    def draw(self, latent: Tensor, progress: float, generator: torch.Generator | None = None) -> Draw:
        """t and noise for a latent (1, C, h, w). progress: of the edit, in [0, 1].

        generator: the step's own, on the CPU, so that a GPU draws the same; None is torch's global one.
        """
        if self.t_order == "falling":
            t = round(self.t_max + progress * (self.t_min - self.t_max))
        else:
            t = int(torch.randint(self.t_min, self.t_max + 1, (1,), generator=generator))
        noise = torch.randn(latent.shape, generator=generator, dtype=torch.float32).to(latent.device, non_blocking=True)
        return Draw(t, noise, generator)

    def scaled(self, difference: Tensor) -> Tensor:
        """A difference of noises (1, C, h, w) as a gradient."""
        height, width = difference.shape[2:]
        return difference * (2000 / (height * width) if self.score_scale is None else self.score_scale)

    def step(self, draw: Draw, gradient: Tensor, **figures: float | Tensor) -> Step:
        """A step whose figures tell t and the gradient's size."""
        return Step(gradient, {"t": draw.t, "score_gradient_rms": rms(gradient), **figures})

    @property
    def unet_graphs(self) -> int:
        """How many forwards of the U-Net a step keeps at once for backward passes, which is what takes memory."""
        return 0


def check_timesteps(objective: Objective, prior: Prior, group: str = "objective") -> None:
    """UserError if the objective's timesteps are not all the prior's. group: of its options."""
    last = len(prior.alphas) - 1
    if not 0 <= objective.t_min <= objective.t_max <= last:
        raise UserError(f"{group}.t_min..t_max is {objective.t_min}..{objective.t_max}: it has to lie in 0..{last}")


def classifier_free(eps_null: Tensor, eps_text: Tensor, scale: float) -> Tensor:
    """Guided noise, any shape: eps_null + scale (eps_text - eps_null).

    CDS, equation 1, which writes (1 + w) eps_text - w eps_null: the same with scale = 1 + w.
    """
    return eps_null + scale * (eps_text - eps_null)


def rms(x: Tensor) -> Tensor:
    """Root mean square, a tensor of one number."""
    return x.square().mean().sqrt()


def fetched(values: Iterable[float | Tensor]) -> list[float]:
    """The same with every tensor of one number as that number. A GPU is waited for once for all of them."""
    values = list(values)
    tensors = [v.detach() for v in values if isinstance(v, Tensor)]
    together = [v.to(tensors[0].device, torch.float64, non_blocking=True) for v in tensors]
    numbers = iter(torch.stack(together).tolist() if together else ())
    return [next(numbers) if isinstance(v, Tensor) else v for v in values]

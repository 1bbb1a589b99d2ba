"""One step's gradient on the target latent: which forwards of the U-Net an objective needs, and how they combine.

SDS  2 forwards            guidance-weighted noise less the true noise
DDS  4 forwards            difference of the target's and the source's guided noise
CDS  4 forwards, 1 backward   DDS plus the gradient of PatchNCE through the conditional target forward
"""

from __future__ import annotations

from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from cds3d.objectives.patchnce import contrastive_loss
from cds3d.objectives.scores import classifier_free, dds_gradient, sds_gradient

# The published step on a latent element is 2000 / (h w) at 64x64. Held constant at other sizes, so that the balance
# with the contrastive term does not hang on the image's size.
SCORE_SCALE = 2000 / 4096


class Denoiser(Protocol):
    """What an objective asks of a diffusion model (see `guidance.Guidance`).

    aside: a thread of one for forwards that can wait, or None where all cores share every operator.
    """

    aside: Executor | None

    def add_noise(self, z: Tensor, noise: Tensor, t: int) -> Tensor: ...

    def predict(
        self, z_t: Tensor, t: int, text: Tensor, features: str | None = None
    ) -> tuple[Tensor, list[Tensor]]: ...


@dataclass(frozen=True)
class Prompts:
    """Text embeddings (1, tokens, width) of the empty, the source and the target prompt."""

    null: Tensor
    source: Tensor
    target: Tensor


@dataclass(frozen=True)
class Begun:
    """A step's draw of t and noise (1, C, h, w), its source latent, and the source's branch if it is on its way."""

    t: int
    noise: Tensor
    z_src: Tensor
    source: Future | None = None


@dataclass(frozen=True)
class Objective:
    """kind: "sds", "dds" or "cds". scale: classifier-free guidance. t is drawn from t_min..t_max inclusive.

    weight, patch_sizes, patches, temperature, center: of PatchNCE; weight 0 makes CDS equal to DDS. features: where
    PatchNCE looks: "self" or "cross" (outputs of the up-sampling attention layers) or "score" (the noise prediction).
    """

    kind: str
    scale: float
    t_min: int = 50
    t_max: int = 949
    weight: float = 3.0
    patch_sizes: tuple[int, ...] = (1, 2)
    patches: int = 256
    temperature: float = 0.07
    center: bool = False
    features: str = "self"

    def __post_init__(self):
        if self.kind not in ("sds", "dds", "cds"):
            raise ValueError(f"objective {self.kind!r} is unknown; use sds, dds or cds")
        if self.features not in ("self", "cross", "score"):
            raise ValueError(f"features {self.features!r} are unknown; use self, cross or score")
        if self.weight < 0 or self.temperature <= 0:
            raise ValueError(f"weight={self.weight} has to be 0 or more, temperature={self.temperature} above 0")
        if self.patches < 1:
            raise ValueError(f"patches={self.patches} has to be at least 1")
        if not self.patch_sizes or min(self.patch_sizes) < 1:
            raise ValueError(
                f"patch_sizes={list(self.patch_sizes)} has to be a list of whole numbers of at least 1, as in [1,2]"
            )

    def begin(self, model: Denoiser, z_src: Tensor, prompts: Prompts) -> Begun:
        """What of a step needs nothing but the source latent (1, C, h, w).

        Draws one t and one noise, used for both branches, from the global generator. Where the model has a thread
        aside, the source's branch runs there while the caller makes the target's latent.
        """
        t = int(torch.randint(self.t_min, self.t_max + 1, (1,)))
        noise = torch.randn(z_src.shape).to(z_src.device)
        source = None
        if self.kind != "sds" and model.aside:
            text = torch.cat([prompts.null, prompts.source])
            source = model.aside.submit(_frozen, model, [z_src, z_src], noise, t, text, self._contrast)
        return Begun(t, noise, z_src, source)

    def gradient(self, model: Denoiser, z_tgt: Tensor, begun: Begun, prompts: Prompts) -> tuple[Tensor, dict]:
        """(dL/dz (1, C, h, w) float32, figures of the step) at target latent z_tgt."""
        return (self._sds if self.kind == "sds" else self._delta)(model, z_tgt, begun, prompts)

    @property
    def _contrast(self) -> str | None:
        """The features that are compared, if any are."""
        return self.features if self.kind == "cds" and self.weight > 0 else None

    def _sds(self, model, z_tgt, begun, prompts) -> tuple[Tensor, dict]:
        text = torch.cat([prompts.null, prompts.target])
        (null, cond), _ = _frozen(model, [z_tgt, z_tgt], begun.noise, begun.t, text)
        guided = classifier_free(null, cond, self.scale)
        gradient = SCORE_SCALE * sds_gradient(guided, begun.noise[0])[None]
        return gradient, {"t": begun.t, "score_gradient_rms": _rms(gradient)}

    def _delta(self, model, z_tgt, begun, prompts) -> tuple[Tensor, dict]:
        t, noise, z_src, contrast = begun.t, begun.noise, begun.z_src, self._contrast
        if begun.source:
            null = model.aside.submit(_frozen, model, [z_tgt], noise, t, prompts.null)
        else:
            text = torch.cat([prompts.null, prompts.source, prompts.null])
            (null_src, cond_src, null_tgt), reference = _frozen(model, [z_src, z_src, z_tgt], noise, t, text, contrast)
        with torch.set_grad_enabled(contrast is not None):
            z = z_tgt.detach().requires_grad_(contrast is not None)
            (cond_tgt,), current = model.predict(model.add_noise(z, noise, t), t, prompts.target, contrast)
        if begun.source:
            (null_src, cond_src), reference = begun.source.result()
            ((null_tgt,), _) = null.result()
        eps_tgt = classifier_free(null_tgt, cond_tgt.detach(), self.scale)
        eps_src = classifier_free(null_src, cond_src, self.scale)
        gradient = SCORE_SCALE * dds_gradient(eps_tgt, eps_src)[None]
        figures = {"t": t, "score_gradient_rms": _rms(gradient)}
        if contrast is not None:
            pairs = [(r[1], c[0]) for r, c in zip(reference, current, strict=True)]
            loss = contrastive_loss(
                pairs,
                patch_sizes=self.patch_sizes,
                patches=self.patches,
                temperature=self.temperature,
                center=self.center,
            )
            pull = self.weight * torch.autograd.grad(loss, z)[0]
            figures |= {"contrastive_loss": loss.item(), "contrastive_gradient_rms": _rms(pull)}
            gradient = gradient + pull
        return gradient, figures


@torch.no_grad()
def _frozen(model: Denoiser, latents: list[Tensor], noise: Tensor, t: int, text: Tensor, features: str | None = None):
    """`Denoiser.predict` of latents (1, C, h, w) with the same noise, side by side."""
    return model.predict(torch.cat([model.add_noise(z, noise, t) for z in latents]), t, text, features)


def _rms(x: Tensor) -> float:
    return x.square().mean().sqrt().item()

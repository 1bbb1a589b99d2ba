"""The prior: a frozen diffusion model, and the questions that an objective asks of it.

prior = load_prior("pocket", device=device)
prompt = prior.embed("a red flower")
text, null = prior.ask(Query(z_t, t, prompt), Query(z_t, t, prior.embed("")))     # one batch, now
pending = prior.submit(Query(z_t, t, prompt))                                     # may start in a thread
((text,),) = prior.gather(pending)                                                # waits for it, or computes it
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor

from cds3d.guidance.features import FeatureTap
from cds3d.guidance.idle import drop_idle_branches
from cds3d.guidance.text import ClipText, Prompt, XLText, words_cut
from cds3d.threads import beside
from tensorf.devices import usable_device
from tensorf.errors import UserError
from tensorf.precision import full_precision

log = logging.getLogger("cds3d")

CELL = 8  # pixels per latent element, along each side
SMALL = 50_000_000  # parameters of a U-Net up to which one core is as fast as several
FEATURES = ("self", "cross", "score")


@dataclass(frozen=True)
class Query:
    """What noise is in the noisy latent z_t (1, C, h, w) at timestep t, given a prompt?

    features: "self" or "cross" also asks for the outputs of the up-sampling attention layers of that kind, "score" for
    the noise as the only feature map. grad: the answer is differentiable in z_t.

    Raises ValueError for features of another kind.
    """

    z_t: Tensor
    t: int
    prompt: Prompt
    features: str | None = None
    grad: bool = False

    def __post_init__(self):
        if self.features is not None and self.features not in FEATURES:
            raise ValueError(f"features={self.features!r} is unknown; use {', '.join(FEATURES)}, or None")


@dataclass(frozen=True)
class Prediction:
    """noise (1, C, h, w) float32; features: one (C_l, h_l, w_l) map per layer, empty if none was asked for."""

    noise: Tensor
    features: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Pending:
    """Queries on their way: `future` computes them in a thread, or nobody does until they are gathered."""

    queries: tuple[Query, ...]
    future: Future | None = None


def encoder_gradient(latent: Tensor, image: Tensor, gradient: Tensor) -> Tensor:
    """The gradient on `image` that `gradient`, on its latent, comes from; both of their tensor's shape.

    latent: `Prior.encode_image` of something made from `image`. On the way through the encoder the largest element is
    between 1/2 and 1: in half precision what is a thousand times smaller loses its digits. The factor is a power of
    two, so float32 gives the same bits as without it.
    """
    exponent = torch.frexp(gradient.abs().amax()).exponent
    (own,) = torch.autograd.grad(latent, image, torch.ldexp(gradient, -exponent))
    return torch.ldexp(own, exponent)


class Prior:
    """U-Net, VAE and text encoders, all frozen. Latents and noise are float32 outside, `dtype` inside the networks.

    prediction: "epsilon" or "v_prediction", what the U-Net was trained to give. alphas (T,): cumulative products of the
    noise schedule, a_t^2 in CDS's equation 3. vae_dtype: of the VAE, where it differs (SDXL's overflows in fp16).
    layout: memory format of the networks. None: channels-last, but contiguous for the VAE on a CPU.

    The networks become the prior's own: they change their type, device and layout, are frozen, get hooks, and lose
    branches that add nothing. `prior_of_pipeline` copies those of a pipeline.
    """

    def __init__(
        self,
        *,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        text: ClipText | XLText,
        alphas: Tensor,
        prediction: str,
        device: torch.device | str,
        dtype: torch.dtype = torch.float32,
        vae_dtype: torch.dtype | None = None,
        layout: torch.memory_format | None = None,
    ):
        if prediction not in ("epsilon", "v_prediction"):
            raise ValueError(f"a scheduler that predicts {prediction!r} is not supported: epsilon or v_prediction")
        device = torch.device("meta") if str(device) == "meta" else usable_device(device)  # meta: sizes without memory
        self.prediction, self.device, self.dtype, self.vae_dtype = prediction, device, dtype, vae_dtype or dtype
        self.alphas = alphas.to(device, torch.float32)
        # Channels-last convolutions are faster. But a CPU's group norms lose digits in that layout as maps grow: none
        # on latents, one or more on pictures of 512x512. So on a CPU the VAE has the other layout. A GPU's group norms
        # copy maps to the other layout and convolutions copy them back: `scripts/gpu_check.py` times both.
        self._layout = layout or torch.channels_last
        self._vae_layout = layout or (torch.contiguous_format if device.type == "cpu" else torch.channels_last)
        self.unet = unet.to(device, dtype, memory_format=self._layout).eval().requires_grad_(False)
        self.vae = vae.to(device, self.vae_dtype, memory_format=self._vae_layout).eval().requires_grad_(False)
        drop_idle_branches(self.vae)
        self.text = text
        for encoder in text.encoders:
            encoder.to(device, dtype).eval().requires_grad_(False)
        self._tap = FeatureTap(self.unet)
        self._prompts: dict[str, Prompt] = {}

    def __deepcopy__(self, memo: dict) -> Prior:
        """Itself: nothing of it changes. So copies of what holds a prior, such as an `Editor`, share it."""
        return self

    @cached_property
    def fingerprint(self) -> str:
        """Tells the U-Net's weights from others in the same dtype: "float32:" and 16 hexadecimal digits.

        Of each parameter it sees a few numbers, which is quick for large models, and which training always changes.
        """
        few = [p[(0,) * (p.dim() - 1)][:16].float() for p in self.unet.parameters() if p.dim()]
        digest = hashlib.sha256(torch.cat(few).cpu().numpy().tobytes()).hexdigest()[:16]
        return f"{str(self.dtype).removeprefix('torch.')}:{digest}"

    @property
    def is_large(self) -> bool:
        """Whether the U-Net has operators that several cores are faster at, as Stable Diffusion's and not pocket's."""
        return sum(p.numel() for p in self.unet.parameters()) > SMALL

    # --- text and images

    @torch.no_grad()
    @full_precision
    def embed(self, text: str) -> Prompt:
        """The prompt's embedding, made once a text. Warns if the text is longer than the encoder holds."""
        if text not in self._prompts:
            if cut := words_cut(text, self.text.tokenizers[0], self.text.encoders[0]):
                log.warning('the text encoder has no room for the end of "%s": "%s" is left out', text, cut)
            self._prompts[text] = self.text.embed(text)
        return self._prompts[text]

    def forget_prompts(self) -> None:
        """Drop the embeddings that `embed` has kept: a benchmark has more prompts than a GPU has room for."""
        self._prompts.clear()

    @full_precision
    def encode_image(self, image: Tensor) -> Tensor:
        """(1, 3, H, W) in [0, 1] -> (1, C, h, w) scaled latent, the mean of the VAE's posterior; differentiable.

        h and w are H and W divided by eight and rounded down: 252x189 gives 31x23.
        """
        x = (image * 2 - 1).to(self.device, self.vae_dtype, memory_format=self._vae_layout)
        mean = self.vae.encode(x).latent_dist.mean
        shift = self.vae.config.get("shift_factor") or 0.0
        return (mean.float() - shift) * self.vae.config.scaling_factor

    @torch.no_grad()
    @full_precision
    def decode_image(self, z: Tensor) -> Tensor:
        """(1, C, h, w) scaled latent -> (1, 3, H, W) in [0, 1], clipped. UserError if the decoder overflows."""
        shift = self.vae.config.get("shift_factor") or 0.0
        latent = (z / self.vae.config.scaling_factor + shift).to(self.vae_dtype, memory_format=self._vae_layout)
        x = self.vae.decode(latent).sample
        if not torch.isfinite(x).all():  # else the picture would be black
            raise UserError(
                f"the VAE's decoder gives numbers that are not finite in {str(self.vae_dtype).removeprefix('torch.')}: "
                + ("its weights are damaged" if self.vae_dtype == torch.float32 else "use guidance.dtype=fp32")
            )
        return (x.float() / 2 + 0.5).clamp(0, 1)

    # --- noise

    def noised(self, z: Tensor, t: int, noise: Tensor) -> Tensor:
        """CDS, equation 3: a_t z + b_t noise, with a_t^2 + b_t^2 = 1.

        ValueError for a t that the prior does not have.
        """
        a = self._alpha(t)
        return a.sqrt() * z + (1 - a).sqrt() * noise

    def denoised(self, z_t: Tensor, t: int, noise: Tensor) -> Tensor:
        """The latent that z_t is, if `noise` is the noise in it: `noised` solved for z."""
        a = self._alpha(t)
        return (z_t - (1 - a).sqrt() * noise) / a.sqrt()

    def _alpha(self, t: int) -> Tensor:
        """a_t^2. ValueError for a t that the prior does not have."""
        if not 0 <= t < len(self.alphas):
            raise ValueError(f"t={t} is no timestep of the prior: it has 0..{len(self.alphas) - 1}")
        return self.alphas[t]

    def ask(self, *queries: Query) -> list[Prediction]:
        """Compute the answers now, in the calling thread, in as few forwards as `gather` does."""
        return self.gather(Pending(queries))[0]

    def submit(self, *queries: Query) -> Pending:
        """Hand over queries, and go on with other work until `gather`.

        Those without gradients start at once where a thread of their own pays. On a GPU, and for a U-Net whose
        operators are large, they wait until `gather` makes one batch of them.
        """
        if self._thread and not any(q.grad for q in queries):
            return Pending(queries, self._thread.submit(self._without_gradients, queries))
        return Pending(queries)

    def gather(self, *pending: Pending) -> list[list[Prediction]]:
        """The answers, a list for each `Pending`.

        Waiting queries without gradients share one forward. Those with gradients share one where z_t is the same
        tensor: the graph of such a forward is that of all its queries.
        """
        waiting = [q for p in pending if p.future is None for q in p.queries if not q.grad]
        answers = dict(zip(map(id, waiting), self._without_gradients(waiting) if waiting else (), strict=True))
        alike: dict[int, list[Query]] = {}
        for q in (q for p in pending for q in p.queries if q.grad):
            alike.setdefault(id(q.z_t), []).append(q)
        for queries in alike.values():
            answers |= dict(zip(map(id, queries), self._forward(queries), strict=True))
        for p in pending:
            if p.future is not None:
                answers |= dict(zip(map(id, p.queries), p.future.result(), strict=True))
        return [[answers[id(q)] for q in p.queries] for p in pending]

    @contextmanager
    def beside_others(self) -> Iterator[None]:
        """While queries may run in a thread of their own, operators of this thread leave it a core."""
        threads = torch.get_num_threads()
        if self._thread:
            torch.set_num_threads(max(1, threads - 1))
        try:
            yield
        finally:
            torch.set_num_threads(threads)

    @torch.no_grad()
    def _without_gradients(self, queries: Sequence[Query]) -> list[Prediction]:
        return self._forward(queries)

    @full_precision
    def _forward(self, queries: Sequence[Query]) -> list[Prediction]:
        """One forward of the U-Net. ValueError if its queries ask for different kinds of features, or for a t that the
        prior does not have.
        """
        for q in queries:
            self._alpha(q.t)
        kinds = {q.features for q in queries if q.features}
        if len(kinds) > 1:
            raise ValueError(f"one batch cannot give features of several kinds: {', '.join(sorted(kinds))}")
        kind = next(iter(kinds), None)
        z_t = torch.cat([q.z_t for q in queries])
        t = torch.tensor([q.t for q in queries]).to(self.device, non_blocking=True)
        with torch.set_grad_enabled(any(q.grad for q in queries)):
            with self._tap.caught(kind if kind in ("self", "cross") else None) as maps:
                inputs = z_t.to(self.dtype, memory_format=self._layout)
                noise = self.unet(inputs, t, **self._conditions(queries)).sample.float()
            if self.prediction == "v_prediction":
                a = self.alphas[t].view(-1, 1, 1, 1)
                noise = a.sqrt() * noise + (1 - a).sqrt() * z_t
            if kind == "score":
                maps = [noise]
            return [
                Prediction(noise[i : i + 1], tuple(m[i] for m in maps) if q.features else ())
                for i, q in enumerate(queries)
            ]

    def _conditions(self, queries: Sequence[Query]) -> dict:
        """What the U-Net is told beside z_t and t; XL's also gets the size of the picture, and that it is not cut."""
        conditions: dict = {"encoder_hidden_states": torch.cat([q.prompt.tokens for q in queries]).to(self.dtype)}
        if queries[0].prompt.pooled is not None:
            height, width = (8 * n for n in queries[0].z_t.shape[2:])
            ids = torch.tensor([[height, width, 0, 0, height, width]] * len(queries))
            ids = ids.to(self.device, self.dtype, non_blocking=True)
            pooled = torch.cat([q.prompt.pooled for q in queries]).to(self.dtype)
            conditions["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": ids}
        return conditions

    @cached_property
    def _thread(self) -> ThreadPoolExecutor | None:
        """A thread for forwards of its own, on CPUs of several cores and for a U-Net with small operators only.

        Two forwards side by side then use two cores better than one forward whose operators share them: an operator
        that takes microseconds leaves little to share.
        """
        if self.device.type != "cpu" or torch.get_num_threads() == 1 or self.is_large:
            return None
        return beside("prior", 1)

"""The prior of a diffusers pipeline that a program has made, which may have LoRAs or weights of its own."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from cds3d.guidance.kinds import check_schedule, check_unet, kind_of_index
from cds3d.guidance.loading import DTYPES, assembled, check_dtype, vae_dtype, zero_empty
from cds3d.guidance.prior import Prior
from cds3d.quiet import quiet
from tensorf.devices import usable_device
from tensorf.errors import UserError

_NETWORKS = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}
_OF_KIND = {"sd": _NETWORKS, "xl": _NETWORKS | {"text_encoder_2": CLIPTextModelWithProjection}}
_HOOKS = ("_hf_hook", "_diffusers_hook")  # attributes by which accelerate and diffusers mark modules


@quiet()
def prior_of_pipeline(
    pipeline: DiffusionPipeline, *, device: torch.device | str | None = None, dtype: str | None = None
) -> Prior:
    """The prior that a StableDiffusionPipeline or StableDiffusionXLPipeline, or one of their Img2Img kinds, holds.

    The networks are copied with the LoRAs that are loaded, so the pipeline stays as it is, and later changes of it do
    not reach the prior. Until the program lets go of the pipeline, both are in memory. device: "auto" is the GPU if
    there is one; None is where the U-Net is. dtype: "fp32", "bf16" or "fp16" of the networks' insides; None is that of
    the U-Net, and the VAE keeps its own, except that SDXL's does not run in fp16.

    UserError for pipelines that are not supported, that lack a part, or that are offloaded or quantized.
    """
    told = "the pipeline"
    has_text = getattr(pipeline, "text_encoder", None) is not None
    index = {"_class_name": type(pipeline).__name__, "text_encoder": has_text or None}
    kind = kind_of_index(told, index)
    given = SimpleNamespace(**pipeline.components)
    for name, network in _OF_KIND[kind].items():
        _check_network(told, name, getattr(given, name, None), network)
    for name in ("tokenizer", "tokenizer_2") if kind == "xl" else ("tokenizer",):
        if getattr(given, name, None) is None:
            raise UserError(f"{told} has no {name}")
    check_unet(told, given.unet.config)  # before it is copied
    check_schedule(told, type(given.scheduler).__name__)
    device = usable_device(given.unet.device if device is None else device)
    name = _name_of(given.unet.dtype) if dtype is None else dtype
    check_dtype("dtype", name, device)
    of_vae = vae_dtype(kind, given.vae.config, given.vae.dtype if dtype is None else DTYPES[name], device)
    parts = SimpleNamespace(**vars(given) | {"zero_empty": zero_empty(pipeline.config)})
    for part in _OF_KIND[kind]:
        setattr(parts, part, copy.deepcopy(getattr(given, part)))
    parts.scheduler = DDIMScheduler.from_config(given.scheduler.config)  # only its noise levels are used
    return assembled(told, kind, parts, device, DTYPES[name], of_vae)


def _check_network(told: str, name: str, network: nn.Module | None, wanted: type) -> None:
    """UserError for a network that is missing, of another class, or whose weights are not in it as they are."""
    if network is None:
        raise UserError(f"{told} has no {name}")
    if not isinstance(network, wanted):
        raise UserError(f"{told}: its {name} is of the class {type(network).__name__}, not {wanted.__name__}")
    hooked = any(hasattr(module, hook) for module in network.modules() for hook in _HOOKS)
    if hooked or any(p.is_meta for p in network.parameters()):
        raise UserError(f"{told}: its {name} is offloaded, or has other hooks: pass the pipeline before it gets them")
    if getattr(network, "hf_quantizer", None) is not None:
        raise UserError(f"{told}: its {name} is quantized: load the pipeline without quantization_config")


def _name_of(dtype: torch.dtype) -> str:
    """UserError for types that networks are not used in."""
    for name, kind in DTYPES.items():
        if kind == dtype:
            return name
    raise UserError(f"the pipeline's unet is in {dtype}: pass dtype=, one of {', '.join(DTYPES)}")

"""Loading the prior: the shipped pocket, a hub id, a local folder, or a single safetensors file."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from cds3d.guidance.prior import Prior
from cds3d.guidance.text import ClipText
from cds3d.pocket.weights_path import WEIGHTS
from tensorf.errors import UserError, reason

log = logging.getLogger("cds3d")

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def load_prior(path: str, *, dtype: str = "fp32", device: torch.device, config: str | None = None) -> Prior:
    """path: "pocket", a hub id such as "CompVis/stable-diffusion-v1-4", a diffusers folder, or a .safetensors file.

    dtype: "fp32", "bf16" or "fp16" of the networks' insides. config: hub id or folder whose configuration files a
    single file goes with (diffusers guesses from the weights, and then has to fetch them, if it is None).
    Raises UserError that says what is missing and where to put it. Pickled weights are refused.
    """
    if dtype not in DTYPES:
        raise UserError(f"guidance.dtype={dtype} is unknown; use one of {', '.join(DTYPES)}")
    if dtype == "fp16" and device.type == "cpu":
        raise UserError("guidance.dtype=fp16 needs a GPU; use fp32 or bf16 on a CPU")
    if dtype == "bf16" and device.type == "cpu" and not _has_bf16_instructions():
        log.warning("guidance.dtype=bf16: this CPU has no instructions for it and will be slower than with fp32")
    location = str(WEIGHTS) if path == "pocket" else path
    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    if location.endswith((".ckpt", ".pt", ".bin")):
        raise UserError(f"{path} is a pickle, which can run code when read: convert it to .safetensors first")
    single = location.endswith(".safetensors")
    pipeline = _from_single_file(location, config) if single else _from_pretrained(location)
    prediction = pipeline.scheduler.config.prediction_type
    if prediction not in ("epsilon", "v_prediction"):
        raise UserError(f"{path}: its scheduler predicts {prediction!r}; only epsilon and v_prediction are supported")
    return Prior(
        unet=pipeline.unet,
        vae=pipeline.vae,
        text=ClipText(pipeline.tokenizer, pipeline.text_encoder),
        alphas=pipeline.scheduler.alphas_cumprod,
        prediction=prediction,
        device=device,
        dtype=DTYPES[dtype],
    )


def _has_bf16_instructions() -> bool:
    """True also where PyTorch has no way to tell."""
    return getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)()


def _from_pretrained(path: str) -> StableDiffusionPipeline:
    local = Path(path).is_dir()
    if not local and (path.startswith((".", "/", "~")) or path.count("/") != 1):
        raise UserError(f"guidance.path={path}: no such folder (a hub id looks like owner/name)")
    try:
        return StableDiffusionPipeline.from_pretrained(
            path, use_safetensors=True, safety_checker=None, requires_safety_checker=False
        )
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError) as error:
        if local:
            message = f"{path} is no folder that StableDiffusionPipeline.from_pretrained can load ({reason(error)})"
            raise UserError(message) from error
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
        raise UserError(
            f"cannot get {path} from the hub{offline}: download it where there is a network, "
            f"`hf download {path} --local-dir FOLDER`, and pass guidance.path=FOLDER, "
            "or pass a single .safetensors file, or use guidance=pocket, which ships with cds3d"
        ) from error


def _from_single_file(path: str, config: str | None) -> StableDiffusionPipeline:
    if not Path(path).is_file():
        raise UserError(f"guidance.path={path}: no such file")
    options = {"config": config} if config else {}
    try:
        return StableDiffusionPipeline.from_single_file(path, **options)
    except Exception as error:  # diffusers raises a dozen kinds here, some of them its dependencies'
        raise UserError(
            f"cannot load {path} ({reason(error)}): without a network, pass guidance.config=FOLDER, a folder with the "
            "model_index.json, tokenizer and configuration files of the same model"
        ) from error

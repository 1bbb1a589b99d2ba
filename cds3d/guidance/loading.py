"""Loading the prior: the shipped pocket, a hub id, a local folder, or a single safetensors file.

Each network loads by itself, in the type that it is used in. What an edit does not need (feature extractor, safety
checker) need not be there. docs/priors.md lists which models work.
"""

from __future__ import annotations

import logging
import math
import os
import warnings
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from cds3d.guidance.kinds import (
    check_complete,
    check_schedule,
    check_unet,
    converting,
    kind_of_file,
    kind_of_folder,
    kind_of_index,
    marked_schedule,
    read_json,
    read_scheduler,
    refused,
    variant_of,
)
from cds3d.guidance.prior import Prior, Query
from cds3d.guidance.text import BYTES, ClipText, XLText
from cds3d.hub import why_not
from cds3d.kept_models import kept
from cds3d.pocket.weights_path import WEIGHTS
from cds3d.quiet import quiet
from tensorf.devices import usable_device
from tensorf.errors import UserError, is_out_of_memory, reason

log = logging.getLogger("cds3d")

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_TRIED = 64  # pixels, each side, of the picture that a model is tried on once it is loaded
_PIPELINES = {"sd": StableDiffusionPipeline, "xl": StableDiffusionXLPipeline}
_WITHOUT_A_NETWORK = "or pass a single .safetensors file, or use guidance=pocket, which ships with cds3d"
_CONFIG = "guidance.config=FOLDER, with the model_index.json, tokenizer and configuration files of the same model"
_NOT_NEEDED = {"sd": ("safety_checker", "feature_extractor"), "xl": ("feature_extractor",)}


def load_prior(
    path: str,
    *,
    dtype: str = "fp32",
    device: torch.device | str = "auto",
    config: str | None = None,
    revision: str | None = None,
) -> Prior:
    """path: "pocket", a hub id such as "CompVis/stable-diffusion-v1-4", a diffusers folder, or a .safetensors file.

    dtype: "fp32", "bf16" or "fp16" of the networks' insides. device: "auto" is the GPU if there is one. config: hub id
    or folder whose configuration files a single file goes with (diffusers guesses from the weights, and then has to
    fetch them, if it is None). revision: of the hub id, a commit, tag or branch; None is the newest on its main branch.
    Raises UserError that says what is missing and where to put it, also for a device that is not there. Pickled weights
    are refused, and so are models that bring code. Where models are kept (kept_models.py), the same arguments give the
    same prior again.
    """
    device = usable_device(device)
    load = partial(_loaded, path, dtype, device, config, revision)
    return kept("prior", (path, dtype, device, config, revision), load, again=lambda prior: prior.forget_prompts())


@quiet()
def _loaded(path: str, dtype: str, device: torch.device, config: str | None, revision: str | None) -> Prior:
    check_dtype("guidance.dtype", dtype, device)
    location = str(WEIGHTS) if path == "pocket" else os.path.expanduser(path)
    if location.endswith((".ckpt", ".pt", ".pth", ".bin")):
        raise UserError(f"{path} is a pickle, which can run code when read: convert it to .safetensors first")
    if location.endswith(".safetensors"):
        config = config and os.path.expanduser(config)
        _check_revision(revision, config)
        if config is not None:
            _require_folder_or_id(f"guidance.config={config}", config)
        kind, parts = _from_file(location, config, DTYPES[dtype], device, revision)
    else:
        if config is not None:
            raise UserError(f"guidance.config={config} is of a single file, which {path} is not: leave it out")
        _check_revision(revision, location)
        kind, parts = _from_folder(path, _folder_of(path, location, revision), DTYPES[dtype], device)
    return assembled(f"guidance.path={path}", kind, parts, device, DTYPES[dtype], parts.vae.dtype)


def check_dtype(option: str, dtype: str, device: torch.device) -> None:
    """UserError for a type that is unknown, or that the device cannot compute in. option: its name in messages."""
    if dtype not in DTYPES:
        raise UserError(f"{option}={dtype} is unknown; use one of {', '.join(DTYPES)}")
    if dtype == "fp16" and device.type == "cpu":
        raise UserError(f"{option}=fp16 needs a GPU; use fp32 or bf16 on a CPU")
    if dtype == "bf16" and device.type == "cpu" and not has_bf16_instructions():
        log.warning("%s=bf16: this CPU has no instructions for it and will be slower than with fp32", option)


def assembled(
    told: str,
    kind: str,
    parts: SimpleNamespace,
    device: torch.device,
    dtype: torch.dtype,
    of_vae: torch.dtype,
) -> Prior:
    """The prior of networks, tokenizers and scheduler, by their names in a pipeline of this kind.

    UserError, which begins with `told`, for models that mean something else, or whose parts do not fit together.
    """
    _check(told, parts)
    prior = Prior(
        unet=parts.unet,
        vae=parts.vae,
        text=_text(kind, parts),
        alphas=parts.scheduler.alphas_cumprod,
        prediction=parts.scheduler.config.prediction_type,
        device=device,
        dtype=dtype,
        vae_dtype=of_vae,
    )
    _try(told, prior)
    return prior


@torch.no_grad()
def _try(told: str, prior: Prior) -> None:
    """UserError for configuration files and types that no network can work with, or not with the others."""
    scaling = prior.vae.config.scaling_factor
    if not isinstance(scaling, (int, float)) or not 0 < scaling < math.inf:
        raise UserError(f"{told}: scaling_factor={scaling} of the VAE has to be a number above 0")
    picture = torch.zeros(1, 3, _TRIED, _TRIED, device=prior.device)
    wrong = "tokenizer and text encoder do not work together"
    try:
        prompt = prior.embed("")  # every method asks for it, and it is kept
        _require_finite("the text encoder", prompt.tokens, prior.dtype)
        wrong = "the VAE cannot encode and decode a picture"
        z = prior.encode_image(picture)
        _require_finite("the VAE's encoder", z, prior.vae_dtype)
        again = prior.decode_image(z)
        if z.shape[2:] != (_TRIED // 8, _TRIED // 8) or again.shape != picture.shape:
            raise ValueError(f"{_TRIED}x{_TRIED} pixels become latents {list(z.shape)}, and these {list(again.shape)}")
        wrong = "the U-Net cannot work with the latents of the VAE and the text encoder's prompts"
        (answer,) = prior.ask(Query(z, 0, prompt))
        _require_finite("the U-Net", answer.noise, prior.dtype)
    except UserError as error:  # also of the decoder, which tells itself that it overflows
        raise UserError(f"{told}: {error}") from error
    except Exception as error:  # of networks and configurations that do not fit together: any kind
        if is_out_of_memory(error):
            raise
        raise UserError(f"{told}: {wrong} ({reason(error)})") from error


def _require_finite(part: str, answer: torch.Tensor, dtype: torch.dtype) -> None:
    """UserError, without the model's path, if a network overflows in its type or has damaged weights."""
    if not torch.isfinite(answer).all():
        others = {torch.float16: "bf16 or fp32", torch.bfloat16: "fp32"}
        remedy = f"use guidance.dtype={others[dtype]}" if dtype in others else "its weights are damaged, get others"
        raise UserError(f"{part} gives numbers that are not finite in {dtype}: {remedy}")


def vae_dtype(kind: str, config: dict, dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The VAE's type. That of SDXL overflows in fp16: bf16 on a GPU that has it, which takes as little memory, or fp32.

    config: the VAE's. force_upcast=false there says that the VAE was changed to work in fp16.
    """
    if kind != "xl" or dtype != torch.float16 or not config.get("force_upcast", True):
        return dtype
    return torch.bfloat16 if gpu_has_bf16(device) else torch.float32


def gpu_has_bf16(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def has_bf16_instructions() -> bool:
    """True also where PyTorch has no way to tell."""
    return getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)()


def _check(told: str, parts: SimpleNamespace) -> None:
    """UserError for models whose networks load but mean something else than Stable Diffusion's do."""
    prediction = parts.scheduler.config.prediction_type
    if prediction not in ("epsilon", "v_prediction"):
        raise UserError(f"{told}: its scheduler predicts {prediction!r}; only epsilon and v_prediction are supported")
    check_unet(told, parts.unet.config)
    for name in ("tokenizer", "tokenizer_2"):
        # Without its files transformers makes a tokenizer of two words, says nothing, and all prompts are the same.
        if hasattr(parts, name) and len(getattr(parts, name)) <= BYTES:
            raise UserError(
                f"{told}: {name}/ has no vocabulary: vocab.json and merges.txt, or tokenizer.json, have to be there"
            )
    if parts.vae.config.get("latents_mean") is not None:
        raise refused(told, "a model whose latents are normalised by channel: use")


def _text(kind: str, parts: SimpleNamespace) -> ClipText | XLText:
    if kind == "sd":
        return ClipText(parts.tokenizer, parts.text_encoder)
    tokenizers, encoders = (parts.tokenizer, parts.tokenizer_2), (parts.text_encoder, parts.text_encoder_2)
    return XLText(tokenizers, encoders, zero_empty=parts.zero_empty)


def _check_revision(revision: str | None, location: str | None) -> None:
    """UserError for a revision of what has none: it would pin nothing."""
    if revision is not None and (location is None or Path(location).exists()):
        what = location or "guidance.config=null"
        raise UserError(f"guidance.revision={revision} is of a hub id, which {what} is not: leave it out")


def _folder_of(path: str, location: str, revision: str | None) -> Path:
    """The local folder, or the one in the hub's cache that a hub id is fetched to. UserError if there is neither."""
    if Path(location).is_dir():
        return Path(location)
    _require_folder_or_id(f"guidance.path={path}", location)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of the hub's client, about what diffusers asks of it
            # Before gigabytes are fetched in vain.
            kind = kind_of_index(f"guidance.path={path}", DiffusionPipeline.load_config(location, revision=revision))
        return _fetched(kind, location, revision)
    except UserError:
        raise
    except Exception as error:  # the hub's client, and its clients, raise a dozen kinds
        if is_out_of_memory(error):
            raise
        at = f" at revision {revision}" if revision is not None else ""
        if _lacks_safetensors(error):
            why = f": it has only pickled weights, and {converting(path)}"
        else:
            why = why_not(path, revision, error, f"guidance.path=FOLDER, {_WITHOUT_A_NETWORK}")
        raise UserError(f"cannot get {path}{at} from the hub{why}") from error


def _require_folder_or_id(told: str, location: str) -> None:
    """UserError for what is neither a folder nor looks like a hub id. told: the option, as it is typed."""
    here = Path(location)
    if not here.is_dir() and (here.exists() or location.startswith((".", "/", "~")) or location.count("/") != 1):
        raise UserError(f"{told}: no such folder (a hub id looks like owner/name)")


def _lacks_safetensors(error: Exception) -> bool:
    """Whether diffusers says so of a repository."""
    return "the necessary `safetensors` weights" in str(error)


def _fetched(kind: str, location: str, revision: str | None) -> Path:
    """The folder in the hub's cache: of the plain weights, or of those in fp16 where a repository has no others."""
    options = dict.fromkeys(_NOT_NEEDED[kind]) | {"revision": revision, "use_safetensors": True}
    # without trust_remote_code diffusers refuses pipelines that bring code
    try:
        return Path(_PIPELINES[kind].download(location, **options))
    except Exception as error:
        if not _lacks_safetensors(error):
            raise
        return Path(_PIPELINES[kind].download(location, variant="fp16", **options))


def _from_folder(path: str, folder: Path, dtype: torch.dtype, device: torch.device) -> tuple[str, SimpleNamespace]:
    """(kind, networks, tokenizers and scheduler by their names in a pipeline) of a diffusers folder."""
    told = f"guidance.path={path}"
    kind = kind_of_folder(told, folder)
    of_vae = vae_dtype(kind, read_json(told, folder / "vae" / "config.json"), dtype, device)
    networks = {"unet": (UNet2DConditionModel, dtype), "vae": (AutoencoderKL, of_vae)}
    networks["text_encoder"] = (CLIPTextModel, dtype)
    if kind == "xl":
        networks["text_encoder_2"] = (CLIPTextModelWithProjection, dtype)
    variants = {name: variant_of(told, folder / name) for name in networks}
    parts = SimpleNamespace(zero_empty=zero_empty(read_json(told, folder / "model_index.json")))
    try:
        for name, (network, its_dtype) in networks.items():
            options = {"torch_dtype": its_dtype, "variant": variants[name]}  # both libraries know these names
            loaded, info = network.from_pretrained(
                folder, subfolder=name, use_safetensors=True, output_loading_info=True, **options
            )
            if info["missing_keys"]:
                raise UserError(f"{told}: {len(info['missing_keys'])} weights of {name}/ are missing")
            setattr(parts, name, loaded)
        for name in ("tokenizer", "tokenizer_2") if kind == "xl" else ("tokenizer",):
            setattr(parts, name, CLIPTokenizer.from_pretrained(folder, subfolder=name))
        parts.scheduler = DDIMScheduler.from_config(read_scheduler(told, folder))  # only its noise levels are used
    except UserError:
        raise
    except Exception as error:  # diffusers, transformers, safetensors and tokenizers raise a dozen kinds
        if is_out_of_memory(error):
            raise
        raise UserError(f"{told}: cannot load the folder ({reason(error)})") from error
    return kind, parts


def _from_file(
    path: str, config: str | None, dtype: torch.dtype, device: torch.device, revision: str | None
) -> tuple[str, SimpleNamespace]:
    """As `_from_folder`, of a single file in the original layout.

    config: folder or hub id of its configuration. revision: of the hub id.
    """
    if not Path(path).is_file():
        raise UserError(f"guidance.path={path}: no such file")
    kind, vae_config, options = kind_of_file(path), {}, {}
    if config is not None:
        options |= {"config": config, "revision": revision}
        if Path(config).is_dir():
            folder = Path(config)
            told = f"guidance.config={config}"
            if (of_config := kind_of_folder(told, folder)) != kind:
                raise UserError(f"{told} is of a model of kind {of_config}, and {path} of kind {kind}")
            vae_config = read_json(told, folder / "vae" / "config.json")
    try:
        of_vae = vae_dtype(kind, vae_config, dtype, device)
        vae = AutoencoderKL.from_single_file(path, subfolder="vae", torch_dtype=of_vae, **options)
        not_needed = dict.fromkeys(_NOT_NEEDED[kind])
        pipeline = _PIPELINES[kind].from_single_file(path, vae=vae, torch_dtype=dtype, **not_needed, **options)
        check_complete(path, {"model.diffusion_model.": pipeline.unet, "first_stage_model.": vae})
    except UserError:
        raise
    except Exception as error:  # diffusers raises a dozen kinds here, some of them its dependencies'
        if is_out_of_memory(error):
            raise
        raise UserError(f"cannot load {path}{_why_no_file(config, revision, error)}") from error
    parts = SimpleNamespace(**pipeline.components, zero_empty=zero_empty(pipeline.config))
    check_schedule(f"guidance.config={config}" if config else f"guidance.path={path}", type(parts.scheduler).__name__)
    parts.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)  # only its noise levels are used
    _check_marks(path, parts.scheduler.config)
    return kind, parts


def _why_no_file(config: str | None, revision: str | None, error: Exception) -> str:
    """Why a single file cannot be loaded with such a configuration, for a message of one line."""
    if config is not None and Path(config).is_dir():
        return f" ({reason(error)}): guidance.config={config} has to be of the same model"
    if config is not None:
        return f" with guidance.config={config} of the hub{why_not(config, revision, error, _CONFIG)}"
    return f" ({reason(error)}): without a network, pass {_CONFIG}"


def _check_marks(path: str, scheduler: dict) -> None:
    """UserError if a single file is marked as trained in another way than its scheduler's configuration says."""
    marked = marked_schedule(path)
    found = {key: scheduler.get(key) for key in marked}
    if found != marked:
        wanted, there = (", ".join(f"{k}={v}" for k, v in said.items()) for said in (marked, found))
        raise UserError(
            f"guidance.path={path} was trained with {wanted}, and its configuration says {there}: pass "
            "guidance.config=FOLDER, with that in its scheduler/scheduler_config.json"
        )


def zero_empty(index: dict) -> bool:
    """Whether the empty prompt is all zeros in SDXL; as its pipeline does where model_index.json does not say."""
    return bool(index.get("force_zeros_for_empty_prompt", True))

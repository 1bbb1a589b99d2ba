"""Which model a diffusers folder or a single file holds, told from its configuration and keys before weights are read.

A kind is "sd" (Stable Diffusion 1.x and 2.x) or "xl" (SDXL base). Everything else is refused with one line that names
what it is and what works instead.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from safetensors import safe_open

from tensorf.errors import UserError, reason
from tensorf.untrusted import load_json

CLASSES = {
    "StableDiffusionPipeline": "sd",
    "StableDiffusionImg2ImgPipeline": "sd",
    "StableDiffusionXLPipeline": "xl",
    "StableDiffusionXLImg2ImgPipeline": "xl",
}
_WORKS = "Stable Diffusion 1.x, 2.x or SDXL base 1.0 (guidance=sd14, sd15, sd21 or sdxl)"
_INPAINTING = "an inpainting model, whose U-Net also takes a mask: use the model that it was made from, such as"
_PIX2PIX = "InstructPix2Pix, whose U-Net also takes the source picture: use the model that it was made from, such as"
_UPSCALER = "an upscaler, whose U-Net also takes a small picture: use"
_DEPTH = "a depth-to-image model, whose U-Net also takes a depth map: use"
_REFINER = "SDXL's refiner, which only improves pictures of the base: use the base, as in guidance=sdxl, or"
_NO_UNET = "which is a transformer and has no U-Net: use"
# By what a pipeline's class name contains; the first that fits.
_REFUSED = {
    "Inpaint": _INPAINTING,
    "InstructPix2Pix": _PIX2PIX,
    "Upscale": _UPSCALER,
    "Depth2Img": _DEPTH,
    "StableDiffusion3": f"Stable Diffusion 3, {_NO_UNET}",
    "Flux": f"Flux, {_NO_UNET}",
    "LatentConsistency": "a latent consistency model, which is distilled for a few steps: use",
}
_BY_CHANNELS = {9: _INPAINTING, 8: _PIX2PIX, 7: _UPSCALER, 5: _DEPTH}
_PARTS = {
    "sd": ("unet", "vae", "text_encoder", "tokenizer", "scheduler"),
    "xl": ("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler"),
}


def refused(told: str, what: str) -> UserError:
    """The line that says what a model is and what works instead. told: what names the model at the beginning of a
    message, as in "guidance.path=FOLDER"; what: text that the list of what works completes.
    """
    return UserError(f"{told} is {what} {_WORKS}")


def kind_of_index(told: str, index: dict) -> str:
    """The kind that a model_index.json tells. UserError for models that are not supported."""
    if "_class_name" not in index:
        raise UserError(f"{told}: model_index.json does not say of which pipeline it is (_class_name)")
    name = str(index["_class_name"])
    if name in CLASSES:
        kind = CLASSES[name]
        if kind == "xl" and index.get("text_encoder") in (None, [None, None]):
            raise refused(told, _REFINER)
        return kind
    for part, what in _REFUSED.items():
        if part in name:
            raise refused(told, what)
    raise refused(told, f"a {name}, which is not supported: use")


def kind_of_folder(told: str, folder: Path) -> str:
    """The kind of a diffusers folder, of which the configuration files are read. told: as `refused`'s.

    UserError for folders that are none, that lack a part, and for models that are not supported.
    """
    if not (folder / "model_index.json").is_file():
        files = sorted(p.name for p in folder.glob("*.safetensors"))
        hint = f" (it holds {files[0]}: to load that file, pass its path)" if files else ""
        raise UserError(f"{told} is no diffusers folder: it has no model_index.json{hint}")
    kind = kind_of_index(told, read_json(told, folder / "model_index.json"))
    for part in _PARTS[kind]:
        if not (folder / part).is_dir():
            raise UserError(f"{told} is incomplete: it has no {part}/")
        if part.startswith(("unet", "vae", "text")) and not (folder / part / "config.json").is_file():
            raise UserError(f"{told} is incomplete: it has no {part}/config.json")
    check_unet(told, read_json(told, folder / "unet" / "config.json"))
    check_schedule(told, str(read_scheduler(told, folder).get("_class_name")))
    return kind


def check_schedule(told: str, scheduler: str) -> None:
    """UserError if the class of a scheduler is of another kind of schedule than CDS's equation 3."""
    if re.match("FlowMatch|EDM", scheduler):
        raise refused(told, "a model with a noise schedule of another kind (flow matching or EDM): use")


def check_unet(told: str, config: dict) -> None:
    """UserError if a U-Net with this configuration takes more than a latent, a timestep and text."""
    channels = config.get("in_channels", 4)
    if channels != 4:
        raise refused(told, _BY_CHANNELS.get(channels, f"a model whose U-Net has {channels} input channels: use"))
    if config.get("time_cond_proj_dim") is not None:
        raise refused(told, _REFUSED["LatentConsistency"])


def kind_of_file(path: str) -> str:
    """The kind of a single safetensors file in the original layout, of which only the header is read.

    UserError for files that are damaged or hold something else, and for models that are not supported.
    """
    told = f"guidance.path={path}"
    try:
        with safe_open(path, "pt") as file:
            keys = set(file.keys())
            stem = "model.diffusion_model.input_blocks.0.0.weight"
            channels = file.get_slice(stem).get_shape()[1] if stem in keys else None
    except Exception as error:  # safetensors raises kinds of its own
        raise UserError(f"{told} is no safetensors file, or a damaged one ({reason(error)})") from error

    def any_key(part: str) -> bool:
        return any(part in key for key in keys)

    if any_key("joint_blocks."):
        raise refused(told, _REFUSED["StableDiffusion3"])
    if any_key("double_blocks."):
        raise refused(told, _REFUSED["Flux"])
    if any_key("lora_") or any_key("control_model."):
        raise refused(told, "a LoRA or a ControlNet, which is an addition to a model: use")
    if channels is None:
        what = (
            "a part of a model: pass the whole folder" if any_key("conv_in.weight") else "no model that is known: use"
        )
        raise refused(told, what + (", of" if "folder" in what else ""))
    if channels != 4:
        raise refused(told, _BY_CHANNELS.get(channels, f"a model whose U-Net has {channels} input channels: use"))
    if any(key.startswith(("edm_mean", "edm_vpred.")) for key in keys):  # Playground 2.5 and CosXL
        raise refused(told, "a model with a noise schedule of another kind (EDM): use")
    xl = any_key("conditioner.embedders.1.")
    if not xl and any_key("conditioner.embedders.0.model."):
        raise refused(told, _REFINER)
    for part, name in (("first_stage_model.", "VAE"), ("conditioner." if xl else "cond_stage_model.", "text encoder")):
        if not any_key(part):
            raise refused(told, f"without a {name}: pass a file with all networks, of")
    return "xl" if xl else "sd"


def marked_schedule(path: str) -> dict[str, str | bool]:
    """What a single file says of its schedule, as in a scheduler_config.json; nothing if it says nothing.

    Fine-tunes of SDXL with v-prediction carry marks, which are empty tensors.
    """
    with safe_open(path, "pt") as file:
        keys = set(file.keys())
    if "v_pred" not in keys:
        return {}
    return {"prediction_type": "v_prediction"} | ({"rescale_betas_zero_snr": True} if "ztsnr" in keys else {})


def check_complete(path: str, networks: dict[str, torch.nn.Module]) -> None:
    """UserError if a single file holds fewer tensors under a prefix than the network that was made of them.

    networks: prefix -> network. diffusers leaves at random, and does not tell, what the file lacks.
    """
    with safe_open(path, "pt") as file:
        keys = list(file.keys())
    for prefix, network in networks.items():
        missing = len(network.state_dict()) - sum(key.startswith(prefix) for key in keys)
        if missing > 0:
            raise UserError(f"guidance.path={path}: {missing} weights of {prefix}* are missing")


def variant_of(told: str, part: Path) -> str | None:
    """The variant of a network's weights in its folder `part`: None for plain names, "fp16" for *.fp16.safetensors.

    UserError if there are no weights, or only pickled ones.
    """
    names = sorted(p.name for p in part.iterdir())
    stems = ("diffusion_pytorch_model", "model")
    if any(f"{stem}.safetensors{index}" in names for stem in stems for index in ("", ".index.json")):
        return None
    # Weights in several files, "model.fp16-00001-of-00002.safetensors", have "model.safetensors.index.fp16.json".
    stem = f"(?:{'|'.join(stems)})"
    pattern = re.compile(rf"{stem}\.([^.]+)\.safetensors|{stem}\.safetensors\.index\.([^.]+)\.json")
    variants = [found[1] or found[2] for name in names if (found := pattern.fullmatch(name))]
    variants = [variant for variant in variants if not re.search(r"-\d{5}-of-\d{5}$", variant)]
    if variants:
        return "fp16" if "fp16" in variants else variants[0]
    if any(name.endswith((".bin", ".ckpt", ".pt")) for name in names):
        raise UserError(f"{told} has only pickled weights in {part.name}/, and {converting(str(part.parent))}")
    raise UserError(f"{told} has no weights in {part.name}/ (*.safetensors)")


def converting(path: str) -> str:
    """What to do about a model that has only pickled weights: the end of a message."""
    source = Path(path).expanduser()  # a shell would not expand it within quotes
    return (
        "pickles can run code when they are read: use another copy, or, if you trust this one, convert it with python "
        f"-c \"import diffusers; diffusers.DiffusionPipeline.from_pretrained('{source}', use_safetensors=False)"
        ".save_pretrained('NEW')\""
    )


def read_scheduler(told: str, folder: Path) -> dict:
    return read_json(told, folder / "scheduler" / "scheduler_config.json")


def read_json(told: str, file: Path) -> dict:
    """The mapping in `file`. UserError if it is not there, or damaged."""
    try:
        content = load_json(file)
        if not isinstance(content, dict):
            raise ValueError("it is no mapping")
        return content
    except (OSError, ValueError) as error:  # of which a UnicodeDecodeError is one
        raise UserError(f"{told}: cannot read {file.parent.name}/{file.name} ({reason(error)})") from error

"""A diffusers pipeline's weights under the names of the original Stable Diffusion checkpoints (CompVis's ldm).

The inverse of what `from_single_file` does, for Stable Diffusion 1.x and XL and U-Nets whose up-sampling blocks but the
last have attention.
"""

import re

from tiny_models import open_clip_layout

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def original_layout(pipeline) -> dict:
    """Name -> tensor of a whole checkpoint: U-Net, VAE and text encoders."""
    tensors = {}
    layers = pipeline.unet.config.layers_per_block
    for key, value in pipeline.unet.state_dict().items():
        tensors["model.diffusion_model." + _unet_name(key, layers)] = value.contiguous()
    blocks = len(pipeline.vae.config.block_out_channels)
    for key, value in pipeline.vae.state_dict().items():
        name, value = _vae_entry(key, value, blocks)
        tensors["first_stage_model." + name] = value.contiguous()
    second = getattr(pipeline, "text_encoder_2", None)
    prefix = "cond_stage_model" if second is None else "conditioner.embedders.0"
    for key, value in pipeline.text_encoder.state_dict().items():
        name = key if key.startswith("text_model.") else "text_model." + key
        tensors[f"{prefix}.transformer.{name}"] = value.contiguous()
    if second is not None:
        for name, value in open_clip_layout(second).items():
            tensors["conditioner.embedders.1.model." + name] = value.contiguous()
    return tensors


def _unet_name(key: str, layers: int) -> str:
    for new, old in _UNET_ENDS.items():
        if key.startswith(new + "."):
            return key.replace(new, old, 1)
    if found := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)", key):
        kind, j, rest = found.groups()
        return f"middle_block.{2 * int(j)}.{_resnet(rest)}" if kind == "resnets" else f"middle_block.1.{rest}"
    side, i, kind, j, rest = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.*)", key).groups()
    i, j = int(i), int(j)
    if kind == "downsamplers":
        return f"input_blocks.{(layers + 1) * (i + 1)}.0.op.{rest.removeprefix('conv.')}"
    if kind == "upsamplers":
        return f"output_blocks.{(layers + 1) * i + layers}.2.{rest}"
    block = f"input_blocks.{(layers + 1) * i + j + 1}" if side == "down" else f"output_blocks.{(layers + 1) * i + j}"
    return f"{block}.0.{_resnet(rest)}" if kind == "resnets" else f"{block}.1.{rest}"


def _resnet(rest: str) -> str:
    part, kind = rest.rsplit(".", 1)
    return f"{_RESNET[part]}.{kind}"


def _vae_entry(key: str, value, blocks: int):
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
    name = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d)\.resnets", lambda m: f"up.{blocks - 1 - int(m[1])}.block", name)
    name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{blocks - 1 - int(m[1])}.upsample", name)
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    if found := re.fullmatch(r"(\w+)\.mid_block\.attentions\.0\.(.*)\.(weight|bias)", name):
        side, part, kind = found.groups()
        name = f"{side}.mid.attn_1.{_VAE_ATTENTION[part]}.{kind}"
        if kind == "weight" and part != "group_norm":
            value = value[:, :, None, None]  # a convolution of size 1 there
    return name, value

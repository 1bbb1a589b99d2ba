"""Residual branches that add nothing, left out of a network that is not trained any more.

Pocket's encoder is a linear map in the architecture of Stable Diffusion's: each of its residual branches ends in a
convolution of zeros. Such a branch costs time and memory in both passes and adds exactly 0.
"""

from __future__ import annotations

from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn


class Shortcut(nn.Module):
    """What is left of a residual block: its input, through `conv_shortcut` where the block has one."""

    def __init__(self, conv_shortcut: nn.Module | None):
        super().__init__()
        self.conv_shortcut = conv_shortcut

    def forward(self, x: Tensor, *ignored, **also_ignored) -> Tensor:
        """x (n, C, h, w) -> (n, C', h, w). A block's time embedding, which only its branch reads, is ignored."""
        return x if self.conv_shortcut is None else self.conv_shortcut(x)


def drop_idle_branches(network: nn.Module) -> int:
    """Replace the residual blocks and attentions of `network` whose branch is zero by their shortcuts, in place.

    Returns how many. Results and gradients stay the same.
    """
    found = [(parent, name, child) for parent in network.modules() for name, child in parent.named_children()]
    idle = [(parent, name, child) for parent, name, child in found if _is_idle(child)]
    for parent, name, child in idle:
        setattr(parent, name, Shortcut(getattr(child, "conv_shortcut", None)))
    return len(idle)


def _is_idle(block: nn.Module) -> bool:
    if isinstance(block, ResnetBlock2D):
        plain = block.upsample is None and block.downsample is None and block.output_scale_factor == 1
        return plain and _is_zero(block.conv2)
    if isinstance(block, Attention):
        return block.residual_connection and block.rescale_output_factor == 1 and _is_zero(block.to_out[0])
    return False


def _is_zero(layer: nn.Module) -> bool:
    """False also for parameters that have a size and no numbers (torch's "meta" device)."""
    return not any(p.is_meta or p.any() for p in (layer.weight, layer.bias) if p is not None)

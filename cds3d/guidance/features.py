"""Features of a U-Net's up-sampling attention layers, caught by hooks that leave the fast attention kernels alone."""

from __future__ import annotations

from contextlib import contextmanager

from diffusers import UNet2DConditionModel
from torch import Tensor

_LAYER = {"self": "attn1", "cross": "attn2"}


@contextmanager
def captured(unet: UNet2DConditionModel, kind: str | None):
    """While active, a forward of `unet` appends one (batch, C, h, w) map an up-sampling attention layer to the list.

    kind: "self" or "cross": the layer's output after its out-projection, before the residual sum; None catches nothing.
    The bottleneck is left out (CDS, appendix A). Maps carry their height and width, which need not be equal.
    """
    maps: list[Tensor] = []
    handles = []
    size: dict[str, tuple[int, int]] = {}  # of the transformer that is running

    def remember_size(_module, args, kwargs):
        hidden = args[0] if args else kwargs["hidden_states"]
        size["now"] = tuple(hidden.shape[2:])

    def catch(_module, _args, output: Tensor):
        height, width = size["now"]
        maps.append(output.transpose(1, 2).reshape(len(output), -1, height, width))

    for name, module in unet.up_blocks.named_modules() if kind else ():
        if type(module).__name__ == "Transformer2DModel":
            handles.append(module.register_forward_pre_hook(remember_size, with_kwargs=True))
        elif name.endswith("." + _LAYER[kind]):
            handles.append(module.register_forward_hook(catch))
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()

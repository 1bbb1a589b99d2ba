"""Features of a U-Net's up-sampling attention layers, caught by hooks that leave the fast attention kernels alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from diffusers import UNet2DConditionModel
from torch import Tensor

_LAYERS = {"attn1": "self", "attn2": "cross"}


class FeatureTap:
    """Hooks on a U-Net; inside `caught` the forwards of the same thread leave their maps in its list.

    A map is the layer's output after its out-projection, before the residual sum. The bottleneck is left out (CDS,
    appendix A). Maps carry their height and width, which need not be equal.
    """

    def __init__(self, unet: UNet2DConditionModel):
        self._now = threading.local()
        for name, module in unet.up_blocks.named_modules():
            if type(module).__name__ == "Transformer2DModel":
                module.register_forward_pre_hook(self._remember_size, with_kwargs=True)
            elif (kind := _LAYERS.get(name.rpartition(".")[2])) is not None:
                module.register_forward_hook(lambda _module, _args, output, kind=kind: self._catch(kind, output))

    @contextmanager
    def caught(self, kind: str | None) -> Iterator[list[Tensor]]:
        """kind: "self" or "cross": one (batch, C, h, w) map per layer of that kind, in order; None: nothing."""
        maps = []
        self._now.kind, self._now.maps = kind, maps
        try:
            yield maps
        finally:
            self._now.kind = self._now.maps = None  # their graph is the caller's to drop

    def _remember_size(self, _module, args, kwargs) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        self._now.size = tuple(hidden.shape[2:])

    def _catch(self, kind: str, output: Tensor) -> None:
        if getattr(self._now, "kind", None) == kind:
            self._now.maps.append(output.transpose(1, 2).reshape(len(output), -1, *self._now.size))

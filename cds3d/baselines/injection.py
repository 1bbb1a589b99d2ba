"""One branch of a batch takes over features or attention maps of another. Hooks on a U-Net, for as long as a `with`.

A batch's rows are forwards of branches: the source's and the target's, with and without text. `rows` says for each row
of the batch which row it takes over; a row that takes over itself stays as it is. (0, 0, 0) gives row 0 to all three.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from tensorf.errors import UserError


@dataclass(frozen=True)
class PnPLayers:
    """Names of modules. features: a residual block's last convolution; attention: self-attention layers."""

    features: tuple[str, ...]
    attention: tuple[str, ...]


def pnp_layers(unet: UNet2DConditionModel) -> PnPLayers:
    """The layers that plug-and-play (Tumanyan et al., CVPR 2023, section 4) injects into, for a U-Net of any size.

    The rule: B is the first up-sampling block with attention. Features come from B's second residual block, queries and
    keys from B's attentions from the second on and from all attentions of later blocks. Where B has one only, that one
    is taken. On Stable Diffusion 1.x and 2.x, B is `up_blocks[1]`, and these are the published layers.

    Features are the residual branch alone, before its skip connection is added, as in the authors' code.
    Raises UserError for a U-Net without attention in its up-sampling blocks.
    """
    with_attention = [i for i, block in enumerate(unet.up_blocks) if len(getattr(block, "attentions", None) or ())]
    if not with_attention:
        raise UserError("plug-and-play needs a U-Net with attention in its up-sampling blocks")
    first = with_attention[0]
    resnet = min(1, len(unet.up_blocks[first].resnets) - 1)
    skipped = min(1, len(unet.up_blocks[first].attentions) - 1)
    attention = [
        name
        for name in attention_layers(unet, "attn1", under="up_blocks.")
        if (place := name.split("."))[1] != str(first) or int(place[3]) >= skipped
    ]
    return PnPLayers((f"up_blocks.{first}.resnets.{resnet}.conv2",), tuple(attention))


def attention_layers(unet: UNet2DConditionModel, kind: str, under: str = "") -> list[str]:
    """Names of all layers of a kind, "attn1" (self) or "attn2" (cross), whose name begins with `under`."""
    return [name for name, _ in unet.named_modules() if name.startswith(under) and name.endswith(f".{kind}")]


@contextmanager
def injected(
    unet: UNet2DConditionModel, layers: PnPLayers, rows: Sequence[int], *, features: bool, attention: bool
) -> Iterator[None]:
    """Plug-and-play: features, and queries and keys, of the rows that `rows` names. Either can be left out."""
    with ExitStack() as stack:
        if features:
            stack.enter_context(rows_copied(unet, layers.features, rows))
        if attention:
            stack.enter_context(self_maps_copied(unet, layers.attention, rows))
        yield


def self_maps_copied(
    unet: UNet2DConditionModel, layers: Iterable[str], rows: Sequence[int], max_queries: int | None = None
):
    """Self-attention maps of the rows that `rows` names: with queries and keys a row takes over the whole map.

    max_queries: layers with more positions than that are left alone.
    """
    return rows_copied(unet, [f"{n}.{part}" for n in layers for part in ("to_q", "to_k")], rows, max_queries)


@contextmanager
def rows_copied(
    unet: UNet2DConditionModel, names: Iterable[str], rows: Sequence[int], max_positions: int | None = None
) -> Iterator[None]:
    """Outputs of the named modules, of which row i becomes row `rows[i]`. Raises RuntimeError for another batch size.

    max_positions: outputs (rows, positions, channels) with more positions stay as they are.
    """

    def copied(_module, _args, output: Tensor) -> Tensor:
        if len(output) != len(rows):
            raise RuntimeError(f"a batch of {len(output)} rows came where {len(rows)} were expected")
        if max_positions is not None and output.shape[1] > max_positions:
            return output
        return torch.stack([output[row] for row in rows])  # a list of indices would be copied to the GPU each time

    handles = [unet.get_submodule(name).register_forward_hook(copied) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def cross_maps_replaced(
    unet: UNet2DConditionModel, source_row: int, target_row: int, mapping: Tensor, taken: Tensor
) -> Iterator[None]:
    """Prompt-to-prompt: the target row's cross-attention maps are made of the source row's, in all layers.

    mapping (n, n), from the source's tokens (rows) to the target's (columns); taken (n,) in [0, 1]: how much of the
    target token's map comes from the source. n: tokens of a prompt, padding included.
    """
    processor = _CrossMaps(source_row, target_row, mapping, taken)
    layers = [unet.get_submodule(name) for name in attention_layers(unet, "attn2")]
    before = [layer.processor for layer in layers]
    try:
        for layer in layers:
            layer.set_processor(processor)
        yield
    finally:
        for layer, processor in zip(layers, before, strict=True):
            layer.set_processor(processor)


class _CrossMaps:
    """An attention processor of diffusers that computes its maps explicitly; the fast kernels give none."""

    def __init__(self, source_row: int, target_row: int, mapping: Tensor, taken: Tensor):
        self.source_row, self.target_row, self.mapping, self.taken = source_row, target_row, mapping, taken

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **_) -> Tensor:
        """hidden_states (rows, positions, channels), encoder_hidden_states (rows, n, width) -> as hidden_states."""
        query = attn.head_to_batch_dim(attn.to_q(hidden_states))
        key, value = (attn.head_to_batch_dim(f(encoder_hidden_states)) for f in (attn.to_k, attn.to_v))
        maps = attn.get_attention_scores(query, key, attention_mask)  # (rows * heads, positions, n)
        by_row = maps.unflatten(0, (-1, attn.heads)).clone()
        mapping, taken = self.mapping.to(maps), self.taken.to(maps)
        own = by_row[self.target_row]
        by_row[self.target_row] = (by_row[self.source_row] @ mapping) * taken + own * (1 - taken)
        output = attn.batch_to_head_dim(by_row.flatten(0, 1) @ value)
        return attn.to_out[1](attn.to_out[0](output))

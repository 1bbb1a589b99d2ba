"""How much memory an edit is going to need, told before its first iteration."""

from __future__ import annotations

import torch
from torch import Tensor

from cds3d.guidance.prior import Prior, Query
from cds3d.guidance.text import Prompt
from cds3d.subjects.sources import views_at_a_time

_PREPARE_MB = 170  # what a view's preparation, in chunks, needs for a while: measured
_RAY_BYTES = 9000  # a ray of the view that is rendered and back-propagated, the gaps that it leaves behind: measured
_VIEW_BYTES = 108  # a ray of a kept view: three samples, direction, residue, colour
_REGION_BYTES = 900  # the same of a view's samples in a region of space that fills most of the view: measured
_OPENED_BYTES = 250  # by how much more where all of the region is open again after the edit: measured
# What an operator needs while it runs, besides what is kept, as measured on a CPU: copies of a convolution's weights in
# the order that its kernel likes, and gradients and intermediate maps as large as the largest map that is kept.
_WEIGHT_COPIES = 4.5
_MAP_COPIES = 4.0
_MIB = 2**20


def parameter_mb(module: torch.nn.Module) -> float:
    return sum(p.numel() * p.element_size() for p in module.parameters()) / _MIB


def step_mb(prior: Prior, prompt: Prompt, height: int, width: int, unet_graphs: int) -> float:
    """MB that one step needs beside the weights: the VAE's graph, `unet_graphs` graphs of the U-Net, and the working
    memory of operators.

    height, width: pixels. Runs both networks once on zeros and counts what autograd saves; all of it is alive before
    the backward passes. The working memory of both networks counts: what one frees is in pieces that the other cannot
    use.
    """
    with torch.enable_grad():
        image = torch.zeros(1, 3, height, width, device=prior.device, requires_grad=True)
        encoder = _saved_mb(lambda: prior.encode_image(image), prior.vae)
        unet = []
        if unet_graphs:
            z = torch.zeros(1, prior.unet.config.in_channels, height // 8, width // 8, device=prior.device)
            query = Query(z.requires_grad_(), 500, prompt, "self", grad=True)
            unet = _saved_mb(lambda: prior.ask(query), prior.unet)
    return sum(encoder) + unet_graphs * sum(unet) + _working_mb(prior.vae, encoder) + _working_mb(prior.unet, unet)


def _working_mb(network: torch.nn.Module, kept: list[float]) -> float:
    """What operators of a network need for a while. kept: MB of each map that autograd saves."""
    largest = max((p.numel() * p.element_size() / _MIB for p in network.parameters()), default=0.0)
    return _WEIGHT_COPIES * largest + _MAP_COPIES * max(kept, default=0.0)


def _saved_mb(forward, *networks: torch.nn.Module) -> list[float]:
    """MB of each distinct storage that autograd keeps for `forward`'s backward pass, the networks' weights left out."""
    weights = {p.untyped_storage().data_ptr() for network in networks for p in network.parameters()}
    sizes: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # an output that its own node keeps would hold the graph, and its memory, for ever

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        kept = forward()  # held, so that no storage is freed and counted anew under the same address
    del kept
    return [size / _MIB for size in sizes.values()]


def field_edit_mb(
    prior: Prior,
    prompt: Prompt,
    field: torch.nn.Module,
    views: int,
    height: int,
    width: int,
    unet_graphs: int,
    local: bool = False,
    redrawn: bool = False,
) -> dict[str, float]:
    """MB that an edit of a loaded field with a loaded model adds to what is there, by what they are for.

    local: the edit is of a region of space. How large that is nobody knows yet: the figure is for a large one.
    redrawn: the views are drawn anew after the edit.
    """
    kept = _REGION_BYTES + _OPENED_BYTES * redrawn
    region = {"region": views * height * width * kept / _MIB} if local else {}
    return region | {
        "optimiser": 3 * parameter_mb(field),  # gradient and Adam's two moments
        "views": views * height * width * _VIEW_BYTES / _MIB,
        "rendering": _PREPARE_MB * views_at_a_time(prior.device) + height * width * _RAY_BYTES / _MIB,
        "networks": step_mb(prior, prompt, height, width, unet_graphs),
    }

"""Values of plane-line products at points, with gradients: numba's loops on a CPU, `grid_sample` everywhere else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

# Mode k: a plane over axes (a, b), columns first, and a line over the remaining axis c.
MODES = ((0, 1, 2), (0, 2, 1), (1, 2, 0))
_CHUNK = 16384  # samples a task


@cache
def kernels():
    """`tensorf.kernels`, or None where numba is not to be had. Imported late: numba takes a second."""
    try:
        from tensorf import kernels as compiled
    except ImportError:
        return None
    return compiled


def compiled_for(*tensors: Tensor) -> bool:
    """Whether the compiled loops can take these tensors."""
    return all(t.device.type == "cpu" and t.dtype == torch.float32 for t in tensors) and kernels() is not None


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="tensorf")


def in_parallel(tasks: Sequence[Callable[[], None]]) -> None:
    """Run tasks that release the interpreter's lock on as many threads as torch uses."""
    threads = torch.get_num_threads()
    if threads == 1 or len(tasks) == 1:
        for task in tasks:
            task()
    else:
        for done in [_pool(threads).submit(task) for task in tasks]:
            done.result()


def spans(count: int, length: int = _CHUNK) -> list[tuple[int, int]]:
    return [(i, min(i + length, count)) for i in range(0, count, length)]


def grid_points_first(table: Tensor) -> Tensor:
    """(C, ...) with the same values and the channels of a grid point side by side in memory."""
    return table.movedim(0, -1).contiguous().movedim(-1, 0)


def bilinear(table: Tensor, points: Tensor) -> Tensor:
    """`table` (C, H, W) at `points` (n, 2) in [-1, 1], columns first, clamped to the border -> (C, n)."""
    channels, height, width = table.shape
    # On a CPU `grid_sample` runs in parallel over the batch only: channels are split into that many batches.
    wanted = min(torch.get_num_threads(), 4) if table.device.type == "cpu" else 1
    batch = next(b for b in range(wanted, 0, -1) if channels % b == 0)
    table = table.contiguous().view(batch, channels // batch, height, width)
    grid = points.view(1, 1, -1, 2).expand(batch, -1, -1, -1)
    return F.grid_sample(table, grid, align_corners=True, padding_mode="border").view(channels, -1)


def plane_line_products(planes: Sequence[Tensor], lines: Sequence[Tensor], x: Tensor, *, summed: bool) -> Tensor:
    """planes[k] (C_k, H, W), lines[k] (C_k, N, 1), x (n, 3) in [-1, 1] -> (n, sum of C_k), or (n,) if `summed`."""
    least = min(*(n for plane in planes for n in plane.shape[1:]), *(line.shape[1] for line in lines))
    if least >= 2 and compiled_for(x, *planes, *lines):
        return _Products.apply(x, summed, *planes, *lines)
    parts, total = [], 0
    for plane, line, (a, b, c) in zip(planes, lines, MODES, strict=True):
        along = torch.stack([torch.zeros_like(x[:, c]), x[:, c]], -1)
        across = torch.stack([x[:, a], x[:, b]], -1)  # x[:, (a, b)] would copy a list of indices to the GPU each time
        part = bilinear(plane, across) * bilinear(line, along)
        if summed:
            total = total + part.sum(0)  # at once: the products of all modes would take most of the memory
        else:
            parts.append(part)
    return total if summed else torch.cat(parts).T


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, summed: bool, *tables: Tensor) -> Tensor:
        ctx.save_for_backward(x, *tables)
        ctx.summed = summed
        channels = sum(t.shape[0] for t in tables[:3])
        out = x.new_zeros(len(x)) if summed else x.new_empty(len(x), channels)
        modes = [_points_first(*pair) for pair in zip(tables[:3], tables[3:])]
        points, to = _array(x), out.numpy()
        in_parallel([lambda s=span: _forward(modes, points, to, summed, *s) for span in spans(len(x))])
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor):
        x, *tables = ctx.saved_tensors
        # Lines that are not asked for are not summed up, which is a third of the work.
        with_lines = any(ctx.needs_input_grad[5:])
        grads = [t.new_zeros(t.movedim(0, -1).shape).movedim(-1, 0) for t in tables]
        modes = [_points_first(*pair) for pair in zip(tables[:3], tables[3:])]
        into = [_points_first(*pair) for pair in zip(grads[:3], grads[3:])]
        points, of = _array(x), _array(gradient[:, None] if ctx.summed else gradient)
        total = sum(t.shape[0] for t in tables[:3])
        # Each task adds to channels of its own; fewer than eight would have tasks share cache lines.
        tasks = min(torch.get_num_threads(), -(-total // 8))
        shares = [(total * i // tasks, total * (i + 1) // tasks) for i in range(tasks)]
        common = modes, into, points, of, ctx.summed, with_lines
        in_parallel([lambda s=share: _backward(*common, *s) for share in shares])
        return None, None, *grads[:3], *(grads[3:] if with_lines else [None] * 3)


def _array(tensor: Tensor):
    return tensor.detach().contiguous().numpy()


def _points_first(plane: Tensor, line: Tensor):
    """(C, H, W), (C, N, 1) -> numpy (H, W, C), (N, C): no copies if they are laid out `grid_points_first`."""
    return _array(plane.movedim(0, -1)), _array(line.movedim(0, -1)[:, 0])


def _forward(modes, points, out, summed: bool, start: int, stop: int) -> None:
    column = 0
    for (plane, line), axes in zip(modes, MODES):
        if summed:
            kernels().product_sum(plane, line, (0,) * line.shape[1], *axes, points, out, start, stop)
        else:
            kernels().products(plane, line, (0,) * line.shape[1], *axes, points, out, column, start, stop)
        column += line.shape[1]


def _backward(modes, into, points, gradient, summed: bool, with_lines: bool, low: int, high: int) -> None:
    """The share low..high of all modes' channels."""
    column = 0
    for (plane, line), grads, axes in zip(modes, into, MODES):
        channels = line.shape[1]
        first, last = max(low - column, 0), min(high - column, channels)
        if first < last:
            at = 0 if summed else column
            kernels().product_gradient(
                plane, line, *axes, points, gradient, at, *grads, with_lines, first, (0,) * (last - first)
            )
        column += channels

"""Loops over samples, compiled for the CPU by numba: products of planes and lines, the march, samples with colours.

`grid_sample` reads a table once a channel and its backward pass runs on one core a table; here all channels of a grid
point lie side by side and are read together. Only `lookup`, `occupancy` and `quadrature` call these, on a CPU, in
fp32; everywhere else plain torch does the same.

planes (H, W, C) and lines (N, C), of two points or more along each axis, are C-contiguous; x (n, 3) lies in [-1, 1];
a, b, c are the axes of the plane's columns, its rows, and of the line. Positions outside are clamped to the border.
`many` is a tuple that carries only its length, the number of channels. The length of a tuple is part of its type for
numba, so each number of channels gets an unrolled loop of its own.
"""

from __future__ import annotations

import numba
import numpy as np

# Sums may be reordered and fused, but a value that is not a number stays one: training looks for it.
_REORDER = {"reassoc", "contract", "nsz", "arcp"}
_OPTIONS = {"nogil": True, "fastmath": _REORDER, "boundscheck": False, "error_model": "numpy"}
_ONE, _HALF, _ZERO = np.float32(1), np.float32(0.5), np.float32(0)


def _compiled(function, **options):
    """Compiled at its first call, for good if numba finds a folder to keep the result in."""
    options = {**_OPTIONS, **options}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # neither the package's folder nor the user's can be written to
        return numba.njit(**options)(function)


def _exactly_compiled(function):
    """As `_compiled`, with every sum as it is written, so that two passes agree about every sample."""
    return _compiled(function, fastmath=False)


# Indices are unsigned: numba then leaves out the test for negative ones, and the loops over channels vectorise.


@numba.njit(inline="always", **_OPTIONS)
def _cell(x, size):
    """Position in [-1, 1] -> the grid point before it, and the share of the way to the next."""
    last = np.float32(size - 1)
    p = min(max((x + _ONE) * (_HALF * last), _ZERO), last)
    i = max(min(np.int32(p), np.int32(size - 2)), np.int32(0))  # whatever p is, inside the table
    return np.uint64(i), p - np.float32(i)


@numba.njit(inline="always", **_OPTIONS)
def _corner(x, y, width, height, right, below):
    """A plane's first channel at the grid point before (x, y), and the shares of its four neighbours."""
    u, fu = _cell(x, width)
    v, fv = _cell(y, height)
    w11 = fu * fv
    return v * below + u * right, _ONE - fu - fv + w11, fu - w11, fv - w11, w11


@_compiled
def products(plane, line, many, a, b, c, x, out, column, start, stop):
    """out[n, column + k] = plane_k(x_n) line_k(x_n) for samples start..stop."""
    channels = len(many)
    height, width, _ = plane.shape
    length, total = line.shape[0], out.shape[1]
    p, q, o = plane.ravel(), line.ravel(), out.ravel()
    right, below = np.uint64(channels), np.uint64(width * channels)
    for n in range(start, stop):
        at, w00, w01, w10, w11 = _corner(x[n, a], x[n, b], width, height, right, below)
        w, fw = _cell(x[n, c], length)
        on = w * right
        to = np.uint64(n * total + column)
        for i in range(channels):
            k = np.uint64(i)
            upper = w00 * p[at + k] + w01 * p[at + right + k]
            lower = w10 * p[at + below + k] + w11 * p[at + below + right + k]
            o[to + k] = (upper + lower) * (q[on + k] + fw * (q[on + right + k] - q[on + k]))


@_compiled
def product_sum(plane, line, many, a, b, c, x, out, start, stop):
    """out[n] += sum over k of plane_k(x_n) line_k(x_n) for samples start..stop."""
    channels = len(many)
    height, width, _ = plane.shape
    length = line.shape[0]
    p, q = plane.ravel(), line.ravel()
    right, below = np.uint64(channels), np.uint64(width * channels)
    for n in range(start, stop):
        at, w00, w01, w10, w11 = _corner(x[n, a], x[n, b], width, height, right, below)
        w, fw = _cell(x[n, c], length)
        on = w * right
        total = _ZERO
        for i in range(channels):
            k = np.uint64(i)
            upper = w00 * p[at + k] + w01 * p[at + right + k]
            lower = w10 * p[at + below + k] + w11 * p[at + below + right + k]
            total += (upper + lower) * (q[on + k] + fw * (q[on + right + k] - q[on + k]))
        out[n] += total


@_compiled
def product_gradient(plane, line, a, b, c, x, gradient, column, grad_plane, grad_line, with_line, first, many):
    """Add dL/dplane and, `with_line`, dL/dline of as `many` channels from `first` on, given dL/dproducts.

    gradient (n, total): with one column it belongs to the sum and is every channel's. One caller a channel: nothing is
    locked, and the result does not depend on how many callers there are.
    """
    count = len(many)
    height, width, channels = plane.shape
    length, total = line.shape[0], gradient.shape[1]
    p, q, gp, gq, g = plane.ravel(), line.ravel(), grad_plane.ravel(), grad_line.ravel(), gradient.ravel()
    right, below = np.uint64(channels), np.uint64(width * channels)
    stride = np.uint64(0 if total == 1 else 1)
    for n in range(x.shape[0]):
        of = np.uint64(n * total + column)
        if total == 1 and g[of] == _ZERO:
            continue
        at, w00, w01, w10, w11 = _corner(x[n, a], x[n, b], width, height, right, below)
        w, fw = _cell(x[n, c], length)
        on = w * right
        for i in range(count):
            k = np.uint64(first + i)
            before, after = q[on + k], q[on + right + k]
            to_plane = g[of + k * stride] * (before + fw * (after - before))
            # The same in every pass: the compiler makes two loops of it.
            if with_line:
                upper = w00 * p[at + k] + w01 * p[at + right + k]
                lower = w10 * p[at + below + k] + w11 * p[at + below + right + k]
                to_line = g[of + k * stride] * (upper + lower)
                gq[on + k] += (_ONE - fw) * to_line
                gq[on + right + k] += fw * to_line
            gp[at + k] += w00 * to_plane
            gp[at + right + k] += w01 * to_plane
            gp[at + below + k] += w10 * to_plane
            gp[at + below + right + k] += w11 * to_plane


@_exactly_compiled
def _is_occupied(cells, depth, height, width, x, y, z):
    """Whether the cell of a point in [-1, 1] is marked; cells: flat uint8, row by row of (z, y, x)."""
    cx = min(np.int64((x + _ONE) * (_HALF * np.float32(width))), width - 1)
    cy = min(np.int64((y + _ONE) * (_HALF * np.float32(height))), height - 1)
    cz = min(np.int64((z + _ONE) * (_HALF * np.float32(depth))), depth - 1)
    return cells[np.uint64((cz * height + cy) * width + cx)] != 0


@_exactly_compiled
def march(occupancy, origin, direction, begin, end, dt, steps, counts, first, ray_out, t_out, x_out, start, stop):
    """Samples of rays start..stop at t = begin + i dt < end (i < steps) whose cell is occupied.

    occupancy (z, y, x) uint8; origin, direction (rays, 3) in [-1, 1]; begin, end (rays,). With an empty t_out the
    samples are counted into `counts`; otherwise ray, t and position are written from index `first` of each ray on, as
    many as were counted.
    """
    depth, height, width = occupancy.shape
    cells = occupancy.ravel()
    fill = t_out.shape[0] > 0
    for r in range(start, stop):
        hits = 0
        ox, oy, oz = origin[r, 0], origin[r, 1], origin[r, 2]
        dx, dy, dz = direction[r, 0], direction[r, 1], direction[r, 2]
        for i in range(steps):
            t = begin[r] + np.float32(i) * dt
            if t >= end[r]:
                break
            x, y, z = ox + t * dx, oy + t * dy, oz + t * dz
            if not (abs(x) <= _ONE and abs(y) <= _ONE and abs(z) <= _ONE):
                continue
            if not _is_occupied(cells, depth, height, width, x, y, z):
                continue
            if fill:
                if hits == counts[r]:
                    break
                to = first[r] + hits
                ray_out[to] = r
                t_out[to] = t
                x_out[to, 0], x_out[to, 1], x_out[to, 2] = x, y, z
            hits += 1
        if not fill:
            counts[r] = hits


@_exactly_compiled
def contracted_march(
    occupancy,
    origin,
    direction,
    warp,
    begin,
    end,
    dt,
    steps,
    counts,
    first,
    ray_out,
    t_out,
    x_out,
    step_out,
    start,
    stop,
):
    """As `march`, through contracted space (`tensorf.contraction`).

    origin, direction (rays, 3): u and d; warp (rays, 3): enter, leave, reach. x_out is c(u) / 2; step_out the length
    of a step dt at each sample, in s.
    """
    depth, height, width = occupancy.shape
    cells = occupancy.ravel()
    fill = t_out.shape[0] > 0
    two, most = np.float32(2), np.float32(1 - 1e-4)
    for r in range(start, stop):
        hits = 0
        ox, oy, oz = origin[r, 0], origin[r, 1], origin[r, 2]
        dx, dy, dz = direction[r, 0], direction[r, 1], direction[r, 2]
        enter, leave, reach = warp[r, 0], warp[r, 1], warp[r, 2]
        for i in range(steps):
            t = begin[r] + np.float32(i) * dt
            if t >= end[r]:
                break
            before = min(max(_ONE - t, _ZERO), most)
            behind = min(max(t - _ONE - (leave - enter), _ZERO), most)
            inside = max(min(t - _ONE, leave - enter), _ZERO)
            s = enter + inside + reach * behind / (_ONE - behind) - reach * before / (_ONE - before)
            ux, uy, uz = ox + s * dx, oy + s * dy, oz + s * dz
            ax, ay, az = abs(ux), abs(uy), abs(uz)
            n = max(max(ax, ay), max(az, _ONE))
            k = _ONE / n
            factor = (two - k) * k
            x, y, z = factor * ux * _HALF, factor * uy * _HALF, factor * uz * _HALF
            if not (abs(x) <= _ONE and abs(y) <= _ONE and abs(z) <= _ONE):  # no numbers: rays of absurd cameras
                continue
            if not _is_occupied(cells, depth, height, width, x, y, z):
                continue
            if fill:
                if hits == counts[r]:
                    break
                to = first[r] + hits
                ray_out[to] = r
                t_out[to] = t
                x_out[to, 0], x_out[to, 1], x_out[to, 2] = x, y, z
                rate = _ONE
                if before + behind > _ZERO:
                    rate = reach / ((_ONE - before - behind) * (_ONE - before - behind))
                step_out[to] = rate * dt
            hits += 1
        if not fill:
            counts[r] = hits


@_compiled
def representatives(weights, first, place, groups, out, start, stop):
    """out[i] = the sample that stands for sample i, for rays start..stop; see `quadrature.representatives`."""
    count = weights.shape[0]
    chosen = np.empty(groups, np.int64)
    for r in range(start, stop):
        low = first[r]
        high = first[r + 1] if r + 1 < first.shape[0] else count
        total = _ZERO
        for i in range(low, high):
            total += weights[i]
        rest = 0.0
        for i in range(low, high):
            if weights[i] * groups < total:
                rest += weights[i]
        # Of every group the sample in which the thin weight so far passes the group's place.
        until, group, last = 0.0, 0, low
        for i in range(low, high):
            if weights[i] * groups < total:
                until += weights[i]
                last = i
                while group < groups and until * groups > (group + place[r]) * rest:
                    chosen[group] = i
                    group += 1
        while group < groups:  # rounding
            chosen[group] = last
            group += 1
        until = 0.0
        for i in range(low, high):
            out[i] = i
            if weights[i] * groups < total and rest > 0:
                middle = (until + 0.5 * weights[i]) * groups / rest
                out[i] = chosen[min(int(middle), groups - 1)]
                until += weights[i]

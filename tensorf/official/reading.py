"""`.th` files of TensoRF's authors -> what they hold, checked. Nothing in a file is run: see `unpickled`."""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from tensorf.errors import UserError, reason
from tensorf.lookup import MODES
from tensorf.official.field import OfficialConfig

_RECONSTRUCT = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")  # NumPy 1 and 2
# What the authors' constructor takes where an older file does not say.
_DEFAULTS = {
    "app_dim": 27,
    "density_shift": -10,
    "distance_scale": 25,
    "rayMarch_weight_thres": 0.0001,
    "fea2denseAct": "softplus",
    "near_far": [2.0, 6.0],
    "step_ratio": 2.0,
    "shadingMode": "MLP_PE",
    "pos_pe": 6,
    "view_pe": 6,
    "fea_pe": 6,
    "featureC": 128,
}
_MOST_SAMPLES = 100_000  # on a ray: more is a damaged file


@dataclass(frozen=True, eq=False)
class Official:
    """A checkpoint. box: (2, 3) the aabb. resolution: grid points along x, y, z. near, far: in the authors' units.

    tensors: by their names in `OfficialField`, on the CPU. step: between samples, in the authors' units. samples: on a
    ray, the last of which counts for nothing. least_weight: that a sample needs to be given a colour. mask: (z, y, x)
    bool, which of the grid points of `mask_box` (2, 3) are not empty; None without one.
    """

    path: Path
    config: OfficialConfig
    box: Tensor
    resolution: tuple[int, int, int]
    near: float
    far: float
    step: float
    samples: int
    least_weight: float
    tensors: dict[str, Tensor]
    mask: Tensor | None
    mask_box: Tensor | None

    @property
    def forward_facing(self) -> bool:
        """Whether it lives in NDC, in which the authors' LLFF loader, and no other, has rays from 0 to 1."""
        return (self.near, self.far) == (0.0, 1.0)


def read_official(path: Path) -> Official:
    """Read a checkpoint of TensorVM, TensorVMSplit or TensorCP.

    UserError, in one line that names the file, if it is missing, damaged, of another model, or holds anything but
    tensors, NumPy's arrays of bytes, numbers and text.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a checkpoint (.th) of github.com/apchenstu/TensoRF")
    table = unpickled(path)
    if not isinstance(table, Mapping) or not all(isinstance(table.get(k), Mapping) for k in ("kwargs", "state_dict")):
        raise UserError(f"{path} is no checkpoint of TensoRF's authors: it lacks kwargs and state_dict")
    try:
        return _read(path, table)
    except KeyError as error:
        raise UserError(f"{path} is no whole checkpoint of TensoRF: it lacks {error.args[0]}") from error
    except (ValueError, TypeError, AttributeError, IndexError, RuntimeError, ArithmeticError) as error:
        raise UserError(f"{path} is a checkpoint of TensoRF that cannot be read: {reason(error)}") from error


def unpickled(path: Path | BinaryIO):
    """The file's contents by torch's restricted unpickler, which builds what is allowed and calls nothing else.

    UserError for anything else. Beside torch's own list (tensors and plain containers) that is what the alpha mask, an
    array of bytes, needs.
    """
    reconstruct = np.empty(0).__reduce__()[0]
    allowed = [np.ndarray, np.dtype, type(np.dtype(np.uint8)), *((reconstruct, name) for name in _RECONSTRUCT)]
    try:
        with torch.serialization.safe_globals(allowed):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torn zips, other formats, foreign pickles: torch raises many kinds
        wanted = re.search(r"(?:GLOBAL|function|class|global:?)\s+([\w.]+\.[\w.]+)", str(error))
        if wanted and isinstance(error, pickle.UnpicklingError):
            raise UserError(
                f"{path} is refused: it asks for {wanted[1]}, which no checkpoint of TensoRF needs and which could do "
                "anything on this machine"
            ) from error
        # PyTorch's own words for a foreign pickle advise to read it without a guard.
        told = reason(error)
        why = "" if isinstance(error, pickle.UnpicklingError) or told.isdigit() else f" ({told})"
        raise UserError(f"{path} is damaged, or no checkpoint that PyTorch wrote{why}") from error


def _read(path: Path, table: Mapping) -> Official:
    given, state = {**_DEFAULTS, **table["kwargs"]}, table["state_dict"]
    state = {k: v.float() for k, v in state.items()}
    for name, tensor in state.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name} holds NaN or infinity")
    box = _box(given["aabb"], "aabb")
    points = tuple(int(n) for n in given["gridSize"])
    if len(points) != 3 or min(points) < 2:
        raise ValueError(f"gridSize {points} has to be three numbers above 1")
    grids, components = _grids(state, given)
    network = {k.replace("renderModule.", "decoder.", 1): v for k, v in state.items() if k.startswith("renderModule.")}
    step = ((box[1] - box[0]) / (torch.tensor(points, dtype=torch.float32) - 1)).mean() * float(given["step_ratio"])
    samples = int((box[1] - box[0]).norm() / step) + 1 if step > 0 else 0
    near, far = (float(v) for v in given["near_far"])
    if not (2 <= samples <= _MOST_SAMPLES and math.isfinite(near) and near < far):
        raise ValueError(f"step_ratio {given['step_ratio']} and near_far {given['near_far']} make no sense")
    mask, mask_box = _mask(table)
    return Official(
        path=path,
        config=_config(given, "density_grid.planes.0" not in grids, components),
        box=box,
        resolution=_resolution(grids),
        near=near,
        far=far,
        step=float(step),
        samples=samples,
        least_weight=float(given["rayMarch_weight_thres"]),
        tensors={**grids, "basis.weight": state["basis_mat.weight"], **network},
        mask=mask,
        mask_box=mask_box,
    )


def _config(given: Mapping, cp: bool, components: dict[str, tuple[int, int, int]]) -> OfficialConfig:
    return OfficialConfig(
        decomposition="cp" if cp else "vm",
        **components,
        shading=str(given["shadingMode"]),
        feature_dim=int(given["app_dim"]),
        hidden=int(given["featureC"]),
        frequencies=tuple(int(given[k]) for k in ("fea_pe", "pos_pe", "view_pe")),
        activation=str(given["fea2denseAct"]),
        density_shift=float(given["density_shift"]),
        distance_scale=float(given["distance_scale"]),
    )


def _box(value: Tensor, name: str) -> Tensor:
    box = value.float().reshape(2, 3)
    if not (torch.isfinite(box).all() and (box[0] < box[1]).all()):
        raise ValueError(f"{name} {box.tolist()} has to be a low and a high corner")
    return box


def _grids(state: dict[str, Tensor], given: Mapping) -> tuple[dict[str, Tensor], dict[str, tuple[int, int, int]]]:
    """(the tensors of density and colour grids by their names in `Field`, the components of both)."""
    grids, components = {}, {}
    for name, ours in (("density", "density"), ("app", "color")):
        if "plane_coef" in state:  # TensorVM keeps both in one, colour first
            count = int(given["density_n_comp"])
            part = slice(-count, None) if ours == "density" else slice(0, int(given["appearance_n_comp"]))
            planes, lines = state["plane_coef"][:, part], state["line_coef"][:, part]
        else:
            lines = [state[f"{name}_line.{k}"][0] for k in range(3)]
            planes = [state[f"{name}_plane.{k}"][0] for k in range(3)] if f"{name}_plane.0" in state else None
        counts = tuple(len(line) for line in lines)
        components[f"{ours}_components"] = counts if planes is not None else (counts[0], 0, 0)
        if planes is None:  # CP's lines stand for z, y, x
            lines = lines[::-1]
        else:
            grids |= {f"{ours}_grid.planes.{k}": plane for k, plane in enumerate(planes)}
        grids |= {f"{ours}_grid.lines.{k}": line for k, line in enumerate(lines)}
    return grids, components


def _resolution(grids: dict[str, Tensor]) -> tuple[int, int, int]:
    """Grid points along x, y, z, by the lines."""
    lengths = [grids[f"density_grid.lines.{k}"].shape[1] for k in range(3)]
    if "density_grid.planes.0" in grids:  # line k runs along the axis that plane k leaves out
        lengths = [length for _, length in sorted(zip((c for _, _, c in MODES), lengths))]
    return tuple(lengths)


def _mask(table: Mapping) -> tuple[Tensor | None, Tensor | None]:
    """(mask, mask_box) of an `Official`."""
    if "alphaMask.aabb" not in table:
        return None, None
    shape = tuple(int(n) for n in table["alphaMask.shape"])[-3:]
    bits = np.unpackbits(table["alphaMask.mask"])
    if len(shape) != 3 or min(shape) < 2 or math.prod(shape) > len(bits):
        raise ValueError(f"alphaMask.mask has {len(bits)} bits, which are no mask of shape {shape}")
    mask = torch.from_numpy(bits[: math.prod(shape)].reshape(shape).astype(bool))
    return mask, _box(table["alphaMask.aabb"], "alphaMask.aabb")

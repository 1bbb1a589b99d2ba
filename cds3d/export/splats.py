"""`cds3d export RUN splats`: a preview for viewers of 3D Gaussian Splatting (Kerbl et al., SIGGRAPH 2023).

One round Gaussian a rendered surface pixel. It is no trained splat: for that, export a dataset and train on it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tensorf.captures.writing import Points, write_ply

_C0 = 0.28209479177387814  # of the constant spherical harmonic
_OPACITY = 0.95
_OVERLAP = 2.0  # half widths of a pixel in a standard deviation, so that no gaps show


def write_splats(path: Path, points: Points, half_widths: np.ndarray) -> None:
    """half_widths (n,): of each point's pixel at its depth, in the capture's units."""
    ones = np.ones(len(points), np.float32)
    columns = dict(zip("xyz", points.positions.astype(np.float32).T, strict=True))
    columns |= {name: 0 * ones for name in ("nx", "ny", "nz")}
    color = ((points.colors / 255 - 0.5) / _C0).astype(np.float32)
    columns |= {f"f_dc_{i}": color[:, i] for i in range(3)}
    columns["opacity"] = np.float32(np.log(_OPACITY / (1 - _OPACITY))) * ones
    columns |= {f"scale_{i}": np.log(_OVERLAP * half_widths).astype(np.float32) for i in range(3)}
    columns |= {f"rot_{i}": (1.0 if i == 0 else 0.0) * ones for i in range(4)}
    write_ply(path, columns)

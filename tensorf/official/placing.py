"""A checkpoint of TensoRF's authors and the capture it was trained on -> a field among the capture's cameras.

The authors' frames are made from the same poses as this project's world, so that both can be told from the capture:

- a box is in the capture's own coordinates (`transform_matrix` of Blender's scenes);
- NDC belongs to LLFF: the mean of all poses is the origin, and 0.75 of the nearest depth the unit. Where this
  project has turned photos upright, that is the mean of the poses as they were before.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from tensorf.captures import Capture
from tensorf.captures.geometry import mean_pose
from tensorf.captures.llff import FILE_NAME, nearest_depth
from tensorf.errors import UserError, reason
from tensorf.official.field import OfficialField
from tensorf.official.reading import Official
from tensorf.official.space import OfficialSpace
from tensorf.render import march
from tensorf.space import NEAR_MARGIN

_CELLS = 128  # of the occupancy along the longest side, where there is no mask
_ROUNDING = 1e-3  # of a mask's cell


def official_field(
    model: Official, capture: Capture, mirrored: bool = True, background: float | None = None
) -> OfficialField:
    """The `OfficialField` of a checkpoint in the capture's world.

    mirrored: whether x runs left in the frame of NDC, as it does in the authors' loader; of no effect on boxes.
    background: grey level behind everything; None is white for a box and black for NDC, as in their loaders.
    UserError if the capture is of another format than the checkpoint's, or tensors do not fit each other.
    """
    space = _ndc(model, capture, mirrored) if model.forward_facing else _box(model, capture)
    if background is not None:
        space["background"] = background
    placed = OfficialSpace(box=model.box.clone(), least_weight=model.least_weight, **space)
    try:
        field = OfficialField(model.config, placed, model.resolution, model.samples - 1)
        field.occupancy = _occupancy(model)
        field.load_state_dict({**model.tensors, "occupancy": field.occupancy})
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{model.path}: tensors and kwargs do not fit each other ({_told(error)})") from error
    return field


def unseen_by(field: OfficialField, capture: Capture) -> list[int]:
    """Indices of the cameras, of those that were loaded, none of whose rays meets the field's box."""
    unseen = []
    for i in sorted([*capture.train, *capture.test]):
        try:
            rays = field.space.rays(capture.cameras[i].resized(16, 12)).to(field.device)
        except UserError:  # NDC cannot hold them
            unseen.append(i)
            continue
        if len(march(field, rays).x) == 0:
            unseen.append(i)
    return unseen


def _told(error: Exception) -> str:
    """The first mismatch of torch's list, which is its second line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[1] if len(lines) > 1 else reason(error)


def _ndc(model: Official, capture: Capture, mirrored: bool) -> dict:
    if not (capture.root / FILE_NAME).is_file():
        raise UserError(
            f"{model.path} is a model of an LLFF capture (near_far 0 and 1, so NDC), but {capture.root} has no "
            f"{FILE_NAME}: give the capture that it was trained on"
        )
    unit = NEAR_MARGIN * nearest_depth(capture.root) * _scale(capture)
    lens = capture.cameras[0].turned(-capture.turns)
    across, down = 2 * lens.fx / lens.width, -2 * lens.fy / lens.height
    return dict(
        kind="ndc",
        near=unit,
        far=capture.far,
        reference=_reference(capture),
        background=0.0,
        unit=unit,
        stretch=torch.tensor([-across if mirrored else across, down], dtype=torch.float32),
        interval=1 / (model.samples - 1),
    )


def _reference(capture: Capture) -> Tensor:
    """(3, 4) pose of the mean camera. The authors' loader takes photos as they are stored, whatever their EXIF says."""
    if not capture.turns:
        return capture.reference.clone()
    poses = torch.stack([camera.turned(-capture.turns).pose for camera in capture.cameras])
    return torch.from_numpy(mean_pose(poses.double().numpy())).float()


def _box(model: Official, capture: Capture) -> dict:
    scale, similarity = _scale(capture), capture.world_from_capture.float()
    return dict(
        kind="box",
        near=model.near * scale,
        far=model.far * scale,
        reference=torch.cat([similarity[:3, :3] / scale, similarity[:3, 3:]], 1),
        background=1.0,
        unit=scale,
        stretch=torch.ones(2, dtype=torch.float32),
        interval=model.step,
    )


def _scale(capture: Capture) -> float:
    """World units in one of the capture's."""
    return float(capture.world_from_capture[:3, 0].norm())


def _occupancy(model: Official) -> Tensor:
    """(z, y, x) bool over the model's box: the cells in which the authors' interpolated mask is above 0.

    That is where one of a cell's eight grid points is set. The mask's box may be another one than the model's, as it is
    after a single update of the mask: then cells are cut out, and where the two grids do not meet, a cell counts if it
    overlaps one that does.
    """
    size = model.box[1] - model.box[0]
    if model.mask is None:
        return torch.ones([max(1, round(_CELLS * float(n / size.max()))) for n in size.flip(0)], dtype=torch.bool)
    # Beyond the mask's box lie zeros, two points of them, so that there is an empty cell too.
    cells = F.max_pool3d(F.pad(model.mask[None].float(), (2,) * 6), 2, 1)[0] > 0
    spans = [_overlapped(model, axis) for axis in (2, 1, 0)]
    kept = torch.zeros([len(first) for first, _ in spans], dtype=torch.bool)
    for z in spans[0]:
        for y in spans[1]:
            for x in spans[2]:
                kept |= cells[z[:, None, None], y[None, :, None], x[None, None, :]]
    return kept


def _overlapped(model: Official, axis: int) -> tuple[Tensor, Tensor]:
    """Of each cell along an axis of the model's box, the first and last of the mask's padded cells that it overlaps."""
    count = model.mask.shape[2 - axis]
    low, high = model.mask_box[:, axis].double()
    begin, end = ((float(b) - float(low)) / float(high - low) * (count - 1) for b in model.box[:, axis])
    number = max(1, math.ceil(end - begin - _ROUNDING))
    edges = torch.linspace(begin, end, number + 1, dtype=torch.float64)
    first, last = (edges[:-1] + _ROUNDING).floor(), (edges[1:] - _ROUNDING).ceil() - 1
    return tuple((i.clamp(-2, count).long() + 2) for i in (first, last))

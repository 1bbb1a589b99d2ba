"""PIE-Bench (Ju et al., PnP Inversion, ICLR 2024): 700 images with prompts, masks and ten types of edits.

The folder is the one that its authors hand out: mapping_file.json and annotation_images/.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cds3d.bench.image_table import Columns, Judges
from cds3d.bench.items import Item
from cds3d.metrics.clip import clip_score
from cds3d.metrics.psnr import psnr
from cds3d.metrics.ssim import ssim, ssim_map
from tensorf.errors import UserError, reason
from tensorf.untrusted import load_json, require_inside

SIZE = 512  # pixels: of the images and their masks
TYPES = {
    "0": "random",
    "1": "change object",
    "2": "add object",
    "3": "delete object",
    "4": "change content",
    "5": "change pose",
    "6": "change colour",
    "7": "change material",
    "8": "change background",
    "9": "change style",
}
# In the units of the published tables.
COLUMNS: Columns = (
    ("structure_distance_x1000", "structure distance, 1e-3", 2),
    ("background_psnr_db", "PSNR, dB", 2),
    ("background_lpips_x1000", "LPIPS, 1e-3", 2),
    ("background_mse_x10000", "MSE, 1e-4", 2),
    ("background_ssim_x100", "SSIM, 1e-2", 2),
    ("clip_score_x100", "CLIP score, whole", 2),
    ("region_clip_score_x100", "CLIP score, edited", 2),
    ("seconds", "s", 1),
    ("peak_memory_mb", "MB", 0),
)


def read_mapping(folder: Path, limit: int | None = None) -> list[Item]:
    """PIE-Bench's images in the mapping's order, the first `limit` of them; brackets are taken out of the prompts.

    UserError that names the entry if the mapping cannot be read or an entry is wrong or its image is missing.
    """
    path = folder / "mapping_file.json"
    if not path.is_file():
        raise UserError(f"--pie-bench {folder}: it has no mapping_file.json")
    try:
        entries = load_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({reason(error)})") from error
    if not isinstance(entries, dict) or not entries:
        raise UserError(f"{path} has to be a mapping of ids to images")
    return [_item(folder, path, name, entry) for name, entry in list(entries.items())[:limit]]


def _item(folder: Path, path: Path, name: str, entry: dict) -> Item:
    try:
        src, tgt = (entry[key].replace("[", "").replace("]", "") for key in ("original_prompt", "editing_prompt"))
        type_id, mask, place = str(entry["editing_type_id"]), tuple(int(v) for v in entry["mask"]), entry["image_path"]
        decode_mask(mask)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: the entry {name} is wrong ({type(error).__name__}: {reason(error)})") from error
    if type_id not in TYPES:
        raise UserError(f"{path}: the entry {name} has the unknown editing_type_id {type_id}")
    image = next((p for p in (folder / "annotation_images" / place, folder / place) if p.is_file()), None)
    if image is None:
        raise UserError(f"{path}: the image of the entry {name}, {place}, is neither in annotation_images/ nor beside")
    require_inside([image], folder)
    if Path(name).name != name or name in ("", ".."):
        raise UserError(f"{path}: the id {name} cannot be a folder's name")
    return Item(name, image, src.strip(), tgt.strip(), TYPES[type_id], mask)


def decode_mask(runs: Sequence[int], border: bool = False) -> Tensor:
    """(512, 512) bool, true where the edit is wanted, from (start, length) pairs over the rows laid end to end.

    A run that goes past the end is cut. border: count the outermost pixels as wanted, as the authors' code does
    against errors of annotation. ValueError for an odd count, or a start or length out of range.
    """
    if len(runs) % 2:
        raise ValueError("its mask has an odd count of numbers")
    flat = np.zeros(SIZE * SIZE, dtype=bool)
    for start, length in zip(runs[::2], runs[1::2]):
        if not 0 <= start < SIZE * SIZE or length < 0:
            raise ValueError(f"its mask has the run ({start}, {length})")
        flat[start : start + length] = True
    mask = torch.from_numpy(flat.reshape(SIZE, SIZE))
    if border:
        mask[0], mask[-1], mask[:, 0], mask[:, -1] = True, True, True, True
    return mask


def pie_figures(item: Item, source: Tensor, edited: Tensor, judges: Judges) -> dict[str, float]:
    """The seven metrics. source, edited: (H, W, 3) in [0, 1] of one size; the mask is resized to it.

    background_*: over pixels outside the mask alone, where nothing of the edit inside reaches: for SSIM and LPIPS,
    whose windows are wide, the source is put inside the mask. Without a background they are nan.
    clip_score_x100: 100 times the cosine of the edit and the whole target prompt, 0 if negative.
    region_clip_score_x100: the same with black outside the mask, nan for an empty mask.
    Without their network figures are left out.
    """
    mask = _fitted(decode_mask(item.mask), edited)
    background, nan = ~mask, float("nan")
    composite = torch.where(mask[..., None], source, edited)
    some = bool(background.any())
    figures = {
        "background_psnr_db": psnr(edited, source, background),
        "background_mse_x10000": 1e4 * float((edited - source).square()[background].mean()),
        "background_ssim_x100": 100 * float(ssim_map(composite, source)[background].mean()) if some else nan,
    }
    if judges.lpips is not None:
        apart = judges.lpips.distance_map(composite, source)[background]
        figures["background_lpips_x1000"] = 1000 * float(apart.mean())
    if judges.dino is not None:
        figures["structure_distance_x1000"] = 1000 * judges.dino.structure_distance(edited, source)
    return figures | _clip_figures(item, edited, mask, judges)


def published_pie_figures(item: Item, source: Tensor, edited: Tensor, judges: Judges) -> dict[str, float]:
    """`pie_figures` as the authors' code counts them, to stand beside published tables.

    The mask's border counts as wanted. Both pictures are black inside the mask, and means are over the whole frame:
    a small background gives a high PSNR. The structure distance is fed values of 0 to 255. Their LPIPS is SqueezeNet's.
    """
    mask = _fitted(decode_mask(item.mask, border=True), edited)
    background, nan = (~mask)[..., None], float("nan")
    some = bool(background.any())
    a, b = edited * background, source * background
    figures = {
        "background_psnr_db": psnr(a, b) if some else nan,
        "background_mse_x10000": 1e4 * float((a - b).square().mean()) if some else nan,
        "background_ssim_x100": 100 * ssim(a, b) if some else nan,
    }
    if judges.lpips is not None:
        figures["background_lpips_x1000"] = 1000 * judges.lpips.distance(a, b) if some else nan
    if judges.dino is not None:
        figures["structure_distance_x1000"] = 1000 * judges.dino.structure_distance(edited * 255, source * 255)
    return figures | _clip_figures(item, edited, mask, judges)


def _clip_figures(item: Item, edited: Tensor, mask: Tensor, judges: Judges) -> dict[str, float]:
    if judges.clip is None:
        return {}
    text = judges.clip.text(item.tgt)
    whole = clip_score(judges.clip.image(edited), text)
    inside = clip_score(judges.clip.image(edited * mask[..., None]), text) if mask.any() else float("nan")
    # max() would turn nan into 0 if it came second.
    return {"clip_score_x100": 100 * max(whole, 0.0), "region_clip_score_x100": 100 * max(inside, 0.0)}


def _fitted(mask: Tensor, image: Tensor) -> Tensor:
    """(512, 512) bool -> (H, W) bool of the image, nearest neighbours."""
    return F.interpolate(mask[None, None].float(), tuple(image.shape[:2]), mode="nearest-exact")[0, 0] > 0.5

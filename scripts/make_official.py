"""Train a model in the format of TensoRF's authors, with their network and density, for who has none to import.

    python scripts/make_official.py flower flower.th
    cds3d import flower.th scenes/flower output=outputs/imported/source

Forward-facing scenes only. It takes about two minutes on a core. docs/import.md has figures of edits of such models.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cds3d  # noqa: E402, F401  (sets the thread policy before torch starts)

# isort: split
import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from tqdm import tqdm  # noqa: E402

from cds3d.commands.scenes import load_scene  # noqa: E402
from cds3d.commands.train import field_options  # noqa: E402
from cds3d.options import load_config  # noqa: E402
from tensorf.captures import Capture  # noqa: E402
from tensorf.errors import UserError  # noqa: E402
from tensorf.files import atomic  # noqa: E402
from tensorf.official.field import OfficialConfig, OfficialField  # noqa: E402
from tensorf.official.placing import official_field  # noqa: E402
from tensorf.official.reading import read_official  # noqa: E402
from tensorf.train import Trainer  # noqa: E402

# As in the authors' configuration of LLFF scenes, but for the grids, which are as fine as the photos here.
DENSITY, COLOR, FEATURES, WIDTH = (16, 4, 4), (48, 12, 12), 27, 128
BOX = torch.tensor([[-1.5, -1.67, -1.0], [1.5, 1.67, 1.0]])
SETTINGS = dict(
    aabb=BOX, density_n_comp=list(DENSITY), appearance_n_comp=list(COLOR), app_dim=FEATURES, density_shift=-10,
    alphaMask_thres=1e-4, distance_scale=25, rayMarch_weight_thres=1e-4, fea2denseAct="relu", near_far=[0.0, 1.0],
    step_ratio=2.0, shadingMode="MLP_Fea", featureC=WIDTH, view_pe=0, fea_pe=0, pos_pe=2,
)  # fmt: skip
STAGES = ((90, 0.12), (150, 0.23), (250, 0.65))  # grid points of a cube as large, and share of the steps


def grid_size(points: int) -> list[int]:
    """Of the box, along x, y, z, so that as many points as a cube of `points` along each side has lie evenly."""
    sides = BOX[1] - BOX[0]
    return [int(side / (float(sides.prod()) ** (1 / 3) / points)) for side in sides]


def checkpoint(field: OfficialField) -> dict:
    """The field as the authors' code saves it."""
    state = {"basis_mat.weight": field.basis.weight.detach().clone()}
    for name, grid in (("density", field.density_grid), ("app", field.color_grid)):
        for k in range(3):
            state[f"{name}_plane.{k}"] = grid.planes[k].detach()[None].contiguous().clone()
            state[f"{name}_line.{k}"] = grid.lines[k].detach()[None].contiguous().clone()
    state |= {"renderModule." + key: value.clone() for key, value in field.decoder.state_dict().items()}
    return {"kwargs": {**SETTINGS, "gridSize": list(field.resolution)}, "state_dict": state}


def placed(field: OfficialField, capture: Capture) -> OfficialField:
    """The field where an import would place it in the capture's world."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.th")
        torch.save(checkpoint(field), path)
        return official_field(read_official(path), capture, True)


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene", help="one of `cds3d list scenes`")
    parser.add_argument("output", type=Path, metavar="MODEL.th")
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--width", type=int, help="of the photos, pixels (the scene's own)")
    args = parser.parse_args(argv)
    if args.steps < 1:
        raise UserError(f"--steps {args.steps} has to be at least 1")
    config = load_config(
        "train", [f"scene={args.scene}", *([] if args.width is None else [f"scene.width={args.width}"])]
    )
    capture = load_scene(config)
    if capture.space != "ndc":
        raise UserError(f"{args.scene} is not forward-facing: name another scene")
    _, options = field_options(config, capture.space)
    torch.manual_seed(0)
    settings = OfficialConfig("vm", DENSITY, COLOR, "MLP_Fea", FEATURES, WIDTH, (0, 2, 0), "relu", -10.0, 25.0)
    field, done = OfficialField(settings, None, tuple(grid_size(STAGES[0][0])), 1), 0.0
    for points, share in STAGES:
        field.resample(tuple(grid_size(points)), 1)
        late = done > 0.3
        stage = replace(
            options,
            iterations=max(2, round(args.steps * share)),
            lr_grid=options.lr_grid * options.lr_decay**done,
            lr_network=options.lr_network * options.lr_decay**done,
            lr_decay=options.lr_decay**share,
            batch=options.batch if late else options.batch // 2,
            prune_at=(0.01, 0.4) if late else (),
        )
        trainer = Trainer(capture, None, stage, "cpu", start=placed(field, capture))
        for _ in tqdm(range(stage.iterations), desc=f"grid of {'x'.join(map(str, grid_size(points)))}", unit="step"):
            trainer.step()
        field, done = trainer.field, done + share
    trainer.finish()
    # The mask of the authors' code has points where the field's occupancy has cells.
    mask = F.max_pool3d(F.pad(trainer.field.occupancy[None, None].float(), (1,) * 6), 2, 1)[0, 0] > 0
    bits = np.packbits(mask.numpy().reshape(-1))
    mask_parts = {"alphaMask.shape": (1, 1, *mask.shape), "alphaMask.mask": bits, "alphaMask.aabb": BOX}
    with atomic(args.output) as partial:
        torch.save(checkpoint(trainer.field) | mask_parts, partial)
    print(f"{args.output}: {trainer.held_out_psnr():.1f} dB on pixels of the held-out photos")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"error: {error}")

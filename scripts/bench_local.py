"""Edits that stay where one points: scenes with two flowers, of which only one is to change its colour.

    python scripts/bench_local.py --cases 4                    # half an hour on two cores, training included
    python scripts/bench_local.py --cases 2 --ways click,found  # some of the ways
    python scripts/bench_local.py --cases 4 --tuning           # scenes to tune settings on, apart from those reported

For each scene a capture is rendered and its field trained (outputs/captures, outputs/two-flowers-*). Then the flower on
the right is edited by each way of saying where: everywhere (no region at all), found (what the gradients find), click
(`at=` its middle in the first held-out photo, `radius=` 1.3 times as far as it reaches there), both (the same with
region=both), box (around the same), mask (its true masks), where (`--where "the yellow daisy"`). Writes local.json,
local.md and a sheet. Started again, it goes on from the runs that it finds.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import imageio.v3 as iio  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

from cds3d.bench.fields import check_held_out_capture, held_out_capture, make_held_out_capture  # noqa: E402
from cds3d.bench.report import interval  # noqa: E402
from cds3d.cli import tell  # noqa: E402
from cds3d.commands.edit import edit_command  # noqa: E402
from cds3d.commands.scenes import load_scene  # noqa: E402
from cds3d.commands.train import source_folder, train_command  # noqa: E402
from cds3d.commands.videos import resized_to  # noqa: E402
from cds3d.metrics.psnr import psnr  # noqa: E402
from cds3d.metrics.truth import changed_region  # noqa: E402
from cds3d.options import load_config  # noqa: E402
from cds3d.pocket.world.capture import WorldCapture  # noqa: E402
from cds3d.pocket.world.scenes import COLORS, FLOWERS, Attributes, Jitter, article  # noqa: E402
from cds3d.subjects.given import point_at  # noqa: E402
from cds3d.threads import set_threads  # noqa: E402
from tensorf.errors import UserError  # noqa: E402
from tensorf.files import write_text  # noqa: E402
from tensorf.renderable import load_field  # noqa: E402

WAYS = ("everywhere", "found", "click", "both", "box", "mask", "where")
FIGURES = ("edit_gain_db", "kept_psnr_db", "other_kept_psnr_db", "edit_seconds")
_ROUND = 1.3  # a flower is deep, too: the ball is that much larger than it looks from the front
TUNING_SEED, JUDGING_SEED = 3_500_000, 4_500_000


def scene(seed: int) -> tuple[Attributes, str]:
    """Two flowers of a kind in two colours, and the colour that the one on the right is to take."""
    draw, colors = Jitter(seed), [*COLORS]
    species = draw.choice("flower", FLOWERS)
    left, right, new = (colors.pop(int(draw(name) * len(colors))) for name in ("left", "right", "new"))
    return Attributes.sample(seed).edited(species=species, color=left, beside=right), new


def changed(world: WorldCapture, name: str, size: tuple[int, int], **changes: str) -> np.ndarray:
    """(H, W) bool: where photo `name` differs after a change, at `size` (width, height)."""
    before, after = (world.view(name, a, *size) for a in (world.attributes, replace(world.attributes, **changes)))
    return changed_region(before.image, after.image)


def other_color(*used: str) -> str:
    return next(color for color in COLORS if color not in used)


def pointers(config, world: WorldCapture, capture, field, new: str, folder: Path) -> dict[str, list[str]]:
    """The options of each way of saying where."""
    view = (capture.test or capture.train)[0]
    camera, name = resized_to(capture.cameras[view], config.edit.width), Path(capture.image_names[view]).stem
    rows, columns = changed(world, name, (camera.width, camera.height), beside=new).nonzero()
    u, v = float(np.median(columns)), float(np.median(rows))
    middle = point_at(field, camera, u, v)
    reach = float(np.quantile(np.hypot(columns - u, rows - v), 0.98)) / camera.fx
    radius = _ROUND * reach * float((middle - camera.position) @ camera.forward)
    corners = [f"{x:.4f}" for x in (*(middle - radius).tolist(), *(middle + radius).tolist())]
    masks = folder / "masks"
    masks.mkdir(exist_ok=True)
    for i in capture.train:
        stem = Path(capture.image_names[i]).stem
        mask = changed(world, stem, (camera.width, camera.height), beside=new)
        iio.imwrite(masks / f"{stem}.png", (mask * 255).astype(np.uint8))
    click = [f"at={u / camera.width:.3f},{v / camera.height:.3f},{name}", f"radius={radius:.4f}"]
    words = f"the {world.attributes.beside} {world.attributes.species}"
    return {
        "everywhere": ["edit.region.mask_threshold=0", *["edit.preservation=0"] * ("preservation" in config.edit)],
        "found": [],
        "click": click,
        "both": [*click, "region=both"],
        "box": [f"box={','.join(corners)}"],
        "mask": [f"mask={masks}"],
        "where": [f"where={words}"],
    }


def other_kept(config, world: WorldCapture, capture, source, edited) -> float:
    """PSNR of the edit against the source on the flower that was to stay, over the held-out views."""
    values, attributes = [], world.attributes
    for i in capture.test or capture.train:
        camera = resized_to(capture.cameras[i], config.edit.width)
        of = other_color(attributes.color, attributes.beside)
        mask = changed(world, Path(capture.image_names[i]).stem, (camera.width, camera.height), color=of)
        pair = (field.render(camera)["color"].cpu() for field in (edited, source))
        values.append(psnr(*pair, torch.from_numpy(mask)))
    return float(np.mean(values))


def run_case(number: int, args) -> list[dict]:
    seed = (TUNING_SEED if args.tuning else JUDGING_SEED) + number
    attributes, new = scene(seed)
    folder = held_out_capture(f"two-flowers-{seed}")
    if not check_held_out_capture(folder, attributes):
        make_held_out_capture(folder, attributes)
    before = f"{attributes.beside} {attributes.species}"
    after = f"{new} {attributes.species}"
    base = ["scene=capture", f"threads={args.threads}", "video_frames=0"]

    def configured(command: str, *options: str):
        config = load_config(command, [*base, *options])
        config.capture = str(folder)
        return config

    train = configured("train")
    set_threads(train)
    source_path = source_folder(train)
    if not (source_path / "metrics.json").exists():
        train.resume = (source_path / "state" / "state.pt").exists()
        train_command(train)
    config = configured("edit", *args.options)
    world, capture = WorldCapture.read(folder), load_scene(config)
    source = load_field(source_path / "field.safetensors")
    rows = []
    options = pointers(config, world, capture, source, new, source_path.parent)
    for way in args.ways:
        output = args.output / "runs" / f"{seed}-{way}"
        if not (output / "metrics.json").exists():
            config = configured("edit", *options[way], *args.options)
            config.src, config.tgt = f"{article(before)} {before}", f"{article(after)} {after}"
            config.output, config.overwrite = str(output), True
            edit_command(config)
        metrics = json.loads((output / "metrics.json").read_text())
        edited = load_field(output / "field.safetensors")
        kept = other_kept(config, world, capture, source, edited)
        rows.append({"case": seed, "way": way, "other_kept_psnr_db": kept, "options": options[way], **metrics})
        print(seed, way, *(f"{key} {rows[-1].get(key, float('nan')):.2f}" for key in FIGURES), flush=True)
    return rows


def table(rows: list[dict]) -> str:
    lines = ["| where | cases | gain, dB | kept, dB | the other flower kept, dB | s |", "|---|---|---|---|---|---|"]
    for way in dict.fromkeys(row["way"] for row in rows):
        of_way = [row for row in rows if row["way"] == way]
        columns = [[row[key] for row in of_way] for key in FIGURES]
        told = [
            f"{np.mean(c):.1f}" + (f" ±{interval(c)[1] - np.mean(c):.1f}" if len(c) > 1 else "") for c in columns[:3]
        ]
        lines.append(f"| {way} | {len(of_way)} | {' | '.join(told)} | {np.mean(columns[3]):.0f} |")
    return "\n".join(lines) + "\n"


def _claim(args) -> None:
    """Note what the runs in the output folder are made with. UserError if there are some that were made with others."""
    path, now = args.output / "settings.json", {"options": args.options, "tuning": args.tuning}
    if (args.output / "runs").exists() and (not path.exists() or json.loads(path.read_text()) != now):
        raise UserError(f"{args.output} holds runs with other options: give another --output")
    write_text(path, json.dumps(now) + "\n")


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=4)
    parser.add_argument("--ways", type=lambda text: text.split(","), default=list(WAYS), help=",".join(WAYS))
    parser.add_argument("--tuning", action="store_true", help="other scenes, to tune settings on")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("outputs/bench/local"))
    parser.add_argument("options", nargs="*", help="options of edit.py for every run, such as edit=shape")
    args = parser.parse_args(argv)
    if unknown := set(args.ways) - {*WAYS}:
        parser.error(f"--ways {unknown.pop()} is unknown: use {','.join(WAYS)}")
    if args.cases < 1:
        parser.error("--cases has to be at least 1")
    for option in args.options:
        if option.split("=", 1)[0] in ("scene", "capture", "src", "tgt", "output", "overwrite"):
            parser.error(f"{option}: the benchmark sets this itself (--output says where results go)")
    load_config("edit", ["scene=capture", *args.options])  # wrong options are told before anything is made
    _claim(args)
    tell()
    rows = [row for number in range(args.cases) for row in run_case(number, args)]
    pictures = [iio.imread(args.output / "runs" / f"{row['case']}-{row['way']}" / "views" / "00.png") for row in rows]
    iio.imwrite(args.output / "sheet.jpg", np.concatenate(pictures), quality=90)
    write_text(args.output / "local.json", json.dumps(rows, indent=1) + "\n")
    write_text(args.output / "local.md", table(rows))
    print(table(rows))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(f"error: {error}") from error

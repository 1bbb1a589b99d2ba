"""Trains captures with one set of options, and compares held-out photos with renders.

    python scripts/bench_captures.py FOLDER... [key=value ...]
    python scripts/bench_captures.py my/room my/garden scene.width=200 field=fast

A folder is whatever `train_source.py --capture` takes. Options are those of train_source.py, for all captures; photos
are 200 pixels wide unless scene.width says otherwise. Prints a table and writes, under --output, captures.json, and in
captures/ a run folder for each, and <name>.png: held-out photo, render and depth (near is white), a row a view.
A capture that fails is told, the others go on, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cds3d  # noqa: E402, F401  before torch

# isort: split

import torch  # noqa: E402

from cds3d.cli import tell  # noqa: E402
from cds3d.commands.scenes import load_scene  # noqa: E402
from cds3d.commands.train import train_command  # noqa: E402
from cds3d.options import load_config  # noqa: E402
from cds3d.pictures import colored_depth, depth_range, seen_depth, write_image  # noqa: E402
from cds3d.threads import set_threads  # noqa: E402
from tensorf.captures.sources import name_of  # noqa: E402
from tensorf.errors import UserError  # noqa: E402
from tensorf.files import write_text  # noqa: E402
from tensorf.renderable import load_field  # noqa: E402

COLUMNS = ("psnr_db", "train_psnr_db", "ssim", "seconds", "space")
VIEWS = 3  # of a sheet
OWN = {"output": "use --output FOLDER", "capture": "name the folder alone", "scene": "name the scene's folder alone"}


def bench_capture(folder: Path, options: list[str], output: Path) -> dict:
    """Trains one capture afresh; returns its row of captures.json and writes its sheet."""
    run = output / name_of(folder.resolve())
    given = {option.split("=", 1)[0] for option in options}
    defaults = ["scene=capture", "video_frames=0", f"output={run}", "overwrite=true"]
    defaults += ["scene.width=200"] * ("scene.width" not in given)
    config = load_config("train", [*defaults, *options])
    config.capture = str(folder)
    set_threads(config)
    train_command(config)
    metrics = json.loads((run / "metrics.json").read_text())
    capture, field = load_scene(config), load_field(run / "field.safetensors")
    rows = []
    for i in (capture.test or capture.train)[:VIEWS]:
        rendered = field.render(capture.cameras[i])
        depth = seen_depth(rendered)
        depth = colored_depth(depth, *depth_range([depth]))
        rows.append(torch.cat([capture.images[i].float() / 255, rendered["color"].clamp(0, 1), depth], 1))
    write_image(output / f"{run.name}.png", torch.cat(rows))
    row = {key: metrics[key] for key in COLUMNS if key not in ("seconds", "space")}
    return row | {"seconds": metrics["training_seconds"], "space": capture.space}


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("captures", nargs="+", metavar="FOLDER or key=value")
    parser.add_argument("--output", type=Path, default=Path("outputs/bench"), help="captures.json and sheets go here")
    args = parser.parse_intermixed_args(argv)
    options = [a for a in args.captures if "=" in a and not Path(a).exists()]
    folders = [Path(a) for a in args.captures if a not in options]
    if not folders:
        raise UserError("no capture is given: scripts/bench_captures.py FOLDER...")
    names = [name_of(folder.resolve()) for folder in folders]
    for folder, name in zip(folders, names, strict=True):
        if not folder.exists():
            raise UserError(f"{folder}: no such folder")
        if names.count(name) > 1:
            raise UserError(f"two captures are named {name}: rename a folder, since results go by the name")
    for option in options:
        key = option.split("=", 1)[0]
        if key in OWN:
            raise UserError(f"{option}: {OWN[key]}")
    load_config("train", ["scene=capture", *options])  # wrong options are told first
    rows, failed = {}, 0
    for folder, name in zip(folders, names, strict=True):
        try:
            rows[name] = bench_capture(folder, options, args.output / "captures")
        except UserError as error:
            failed += 1
            print(f"{name}: error: {error}", file=sys.stderr, flush=True)
            continue
        result = {"options": options, "threads": torch.get_num_threads(), "captures": rows}
        write_text(args.output / "captures.json", json.dumps(result, indent=2) + "\n")
    width = max(map(len, names))
    print("capture".ljust(width), *(c.rjust(13) for c in COLUMNS))
    for name, row in rows.items():
        cells = (f"{row[c]:.3f}" if isinstance(row[c], float) else str(row[c]) for c in COLUMNS)
        print(name.ljust(width), *(cell.rjust(13) for cell in cells))
    return 1 if failed else 0


if __name__ == "__main__":
    tell()
    try:
        sys.exit(main())
    except UserError as error:
        raise SystemExit(f"error: {error}") from error

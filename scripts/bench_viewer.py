"""How fast the viewer's pictures are: frames a second while the camera moves and at rest, and the first one.

    python scripts/bench_viewer.py outputs/flower/a-red-flower
    python scripts/bench_viewer.py outputs/flower/a-red-flower --threads 1 --frames 40

Renders what a window renders (source left, edit right of the slider), from cameras between those of the capture, and
prints frames a second by wall clock and by CPU time. Writes outputs/bench/viewer.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402

from cds3d.cli import tell  # noqa: E402
from cds3d.commands.scenes import load_scene  # noqa: E402
from cds3d.commands.train import source_folder  # noqa: E402
from cds3d.options import load_config  # noqa: E402
from cds3d.runs import read_config  # noqa: E402
from cds3d.threads import set_threads  # noqa: E402
from cds3d.viewer.looking import ViewRequest, picture  # noqa: E402
from tensorf.errors import UserError  # noqa: E402
from tensorf.files import write_text  # noqa: E402
from tensorf.paths import keyframed  # noqa: E402
from tensorf.renderable import load_field  # noqa: E402


def measure(run: Path, frames: int) -> dict[str, float]:
    began = time.perf_counter()
    of_run = read_config(run)
    source_path = Path(of_run.run) if of_run.get("run") else source_folder(of_run)
    source, edited = (load_field(folder / "field.safetensors") for folder in (source_path, run))
    capture = load_scene(of_run)
    poses = keyframed(torch.stack([capture.cameras[i].pose for i in capture.train]), frames)
    picture(ViewRequest(poses[0], 0.7, 4 / 3, "split"), 252, source, edited)
    figures = {"first_frame_seconds": time.perf_counter() - began}
    for width in (96, 252):
        wall, cpu = time.perf_counter(), time.process_time()
        for pose in poses:
            picture(ViewRequest(pose, 0.7, 4 / 3, "split"), width, source, edited)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        figures |= {f"frames_per_second_{width}": frames / wall, f"cpu_seconds_per_frame_{width}": cpu / frames}
    return figures


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run folder of an edited field")
    parser.add_argument("--frames", type=int, default=20)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args(argv)
    if args.frames < 2:
        parser.error("--frames has to be at least 2")
    tell()
    config = load_config("view", [])
    config.threads = args.threads
    set_threads(config)
    try:
        figures = measure(args.run, args.frames)
    except UserError as error:
        raise SystemExit(f"error: {error}") from error
    for key, value in figures.items():
        print(f"{key}: {value:.3g}")
    write_text(Path("outputs/bench/viewer.json"), json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Render a capture of the procedural world in LLFF layout: photos, poses_bounds.npy and world.json.

python scripts/make_scene.py flower                                   # the shipped scenes/flower, anew
python scripts/make_scene.py flower --truth red --output /tmp/truth   # the same views with a red flower, and masks
python scripts/make_scene.py cat --truth dog --output /tmp/truth
python scripts/make_scene.py --seed 7 --species tulip --color blue --output /tmp/tulip
python scripts/make_scene.py --seed 7 --species daisy --color red --beside yellow --output /tmp/two   # two flowers
python scripts/make_scene.py --seed 7 --species chair --material wooden --output /tmp/chair
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import imageio.v3 as iio  # noqa: E402
import numpy as np  # noqa: E402
from tqdm import tqdm  # noqa: E402

from cds3d.metrics.truth import changed_region  # noqa: E402
from cds3d.pocket.world.capture import WorldCapture, write_capture  # noqa: E402
from cds3d.pocket.world.scenes import COLORS, GROUNDS, MATERIALS, SPECIES, Attributes  # noqa: E402
from tensorf.errors import UserError  # noqa: E402

_SPECIES = tuple(name for names in SPECIES.values() for name in names)
SCENES = Path(__file__).resolve().parents[1] / "scenes"
SHIPPED = {
    "flower": Attributes(2_000_026, "flower", "daisy", "yellow", "garden"),
    "cat": Attributes(2_000_116, "animal", "cat", "white", "grass"),
    "mug": Attributes(2_000_102, "object", "mug", "red", "table"),
}


def write_truth(capture: Path, word: str, output: Path) -> None:
    """The views of `capture` after the true edit (`images/`) and where they differ from before (`masks/`)."""
    world = WorldCapture.read(capture)
    if world is None:
        raise UserError(f"{capture} has no world.json: only captures made by this script have a known truth")
    edited = world.attributes.towards([word])
    if edited is None:
        raise UserError(f"--truth {word}: {capture} shows that already, or cannot show it")
    for folder in ("images", "masks"):
        (output / folder).mkdir(parents=True, exist_ok=True)
    for name, camera in tqdm(world.cameras.items(), desc="truth", unit="view"):
        before = world.view(name, world.attributes, camera.width, camera.height)
        after = world.view(name, edited, camera.width, camera.height)
        iio.imwrite(output / "images" / f"{name}.png", after.image)
        mask = changed_region(before.image, after.image)
        iio.imwrite(output / "masks" / f"{name}.png", (mask * 255).astype(np.uint8))


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene", nargs="?", choices=sorted(SHIPPED), help="a scene that ships with the project")
    parser.add_argument("--seed", type=int, help="any integer: one seed, one scene")
    parser.add_argument("--species", choices=_SPECIES)
    parser.add_argument("--color", choices=tuple(COLORS), help="of petals and plastic objects")
    parser.add_argument("--material", choices=MATERIALS, help="of objects")
    parser.add_argument("--ground", choices=tuple(GROUNDS))
    parser.add_argument(
        "--beside", choices=tuple(COLORS), help="a second flower of this colour, to the right of a flower"
    )
    parser.add_argument("--views", type=int, default=34)
    parser.add_argument("--width", type=int, default=504, help="pixels; the height is three quarters of it")
    truths = (*COLORS, *_SPECIES, *MATERIALS)
    parser.add_argument(
        "--truth", choices=truths, metavar="WORD", help="write the true edit of SCENE instead: red, dog..."
    )
    parser.add_argument("--output", type=Path, help="folder to write (default for a shipped scene: scenes/SCENE)")
    args = parser.parse_args(argv)
    if (args.scene is None) == (args.seed is None):
        parser.error("give either a shipped scene's name or --seed")
    if args.output is None and (args.scene is None or args.truth):
        parser.error("give --output FOLDER")
    output = args.output or SCENES / args.scene
    try:
        if args.truth:
            if args.scene is None:
                parser.error("--truth needs the name of a shipped scene")
            write_truth(SCENES / args.scene, args.truth, output)
            _tell(output)
            return
        attributes = SHIPPED[args.scene] if args.scene else Attributes.sample(args.seed)
        changes = {k: v for k in ("species", "color", "ground", "material", "beside") if (v := getattr(args, k))}
        write_capture(
            output,
            attributes.edited(**changes),
            views=args.views,
            width=args.width,
            height=args.width * 3 // 4,
            progress=partial(tqdm, desc=str(output), unit="view"),
        )
        _tell(output)
    except UserError as error:
        raise SystemExit(f"error: {error}") from error


def _tell(folder: Path) -> None:
    print(f"{folder}: {len(list((folder / 'images').iterdir()))} pictures")


if __name__ == "__main__":
    main()

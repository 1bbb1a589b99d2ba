"""Render a capture of the procedural world in LLFF layout: photos, poses_bounds.npy and world.json.

python scripts/make_scene.py flower                                   # the shipped scenes/flower, anew
python scripts/make_scene.py flower --truth red --output /tmp/truth   # the same views with a red flower, and masks
python scripts/make_scene.py cat --truth dog --output /tmp/truth
python scripts/make_scene.py --seed 7 --species tulip --color blue --output /tmp/tulip
python scripts/make_scene.py --seed 7 --species daisy --color red --beside yellow --output /tmp/two   # two flowers
python scripts/make_scene.py --seed 7 --species chair --material wooden --output /tmp/chair

What the folder has of an earlier call of the same kind is replaced once all is there. A folder of anything else is
left alone.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
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
from tensorf.files import atomic_folder  # noqa: E402

_SPECIES = tuple(name for names in SPECIES.values() for name in names)
SCENES = Path(__file__).resolve().parents[1] / "scenes"
SHIPPED = {
    "flower": Attributes(2_000_026, "flower", "daisy", "yellow", "garden"),
    "cat": Attributes(2_000_116, "animal", "cat", "white", "grass"),
    "mug": Attributes(2_000_102, "object", "mug", "red", "table"),
}
_CHANGES = ("species", "color", "ground", "material", "beside")
_VIEWS, _WIDTH = 34, 504
_MOST_VIEWS = 1000  # names of photos have three digits: with more, their order would not be that of the poses
_LEAST_WIDTH = 16
_CAPTURE = re.compile(r"images|images/view\d{3}\.jpg|poses_bounds\.npy|world\.json")  # what a call writes
_TRUTH = re.compile(r"(images|masks)(/view\d{3}\.png)?")


def write_truth(capture: Path, word: str, output: Path) -> None:
    """The views of `capture` after the true edit (`images/`) and where they differ from before (`masks/`)."""
    world = WorldCapture.read(capture)
    if world is None:
        raise UserError(f"{capture} has no world.json: only captures made by this script have a known truth")
    edited = world.attributes.towards([word])
    if edited is None:
        raise UserError(f"--truth {word}: {capture} shows that already, or cannot show it")
    for folder in ("images", "masks"):
        (output / folder).mkdir()
    for name, camera in tqdm(world.cameras.items(), desc="truth", unit="view"):
        before = world.view(name, world.attributes, camera.width, camera.height)
        after = world.view(name, edited, camera.width, camera.height)
        iio.imwrite(output / "images" / f"{name}.png", after.image)
        mask = changed_region(before.image, after.image)
        iio.imwrite(output / "masks" / f"{name}.png", (mask * 255).astype(np.uint8))


@contextmanager
def replaced(folder: Path, ours: re.Pattern, needed: str) -> Iterator[Path]:
    """Gives an empty folder that takes the place of `folder` in the end.

    ours: paths of what may be replaced; needed: one that has to be there. UserError if `folder` has anything else.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output {folder} is a file: give a folder")
    if folder.is_dir() and any(folder.iterdir()):
        inside = (p.relative_to(folder) for p in folder.rglob("*"))
        other = next((p for p in inside if not ours.fullmatch(p.as_posix())), None)
        if other is not None or not (folder / needed).exists():
            what = f", such as {other}" if other is not None else ""
            raise UserError(f"--output {folder} holds something else{what}: give a new folder")
    with atomic_folder(folder.resolve()) as new:
        yield new


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
    parser.add_argument("--views", type=int, help=f"({_VIEWS})")
    parser.add_argument("--width", type=int, help=f"pixels; the height is three quarters of it ({_WIDTH})")
    truths = (*COLORS, *_SPECIES, *MATERIALS)
    parser.add_argument(
        "--truth", choices=truths, metavar="WORD", help="write the true edit of SCENE instead: red, dog..."
    )
    parser.add_argument("--output", type=Path, help="folder to write (default for a shipped scene: scenes/SCENE)")
    args = parser.parse_args(argv)
    try:
        output = write(args)
        print(f"{output}: {len(list((output / 'images').iterdir()))} pictures")
    except (UserError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        raise SystemExit(130) from None


def write(args: argparse.Namespace) -> Path:
    """Do what the command line says, and return the folder. UserError for what cannot be done."""
    if (args.scene is None) == (args.seed is None):
        raise UserError("give either a shipped scene's name or --seed")
    if args.output is None and (args.scene is None or args.truth):
        raise UserError("give --output FOLDER")
    if args.truth:
        if args.scene is None:
            raise UserError("--truth needs the name of a shipped scene")
        if given := [name for name in (*_CHANGES, "views", "width") if getattr(args, name) is not None]:
            raise UserError(f"--truth {args.truth} shows the shipped scene, in its views: leave out --{given[0]}")
        with replaced(args.output, _TRUTH, "masks") as folder:
            write_truth(SCENES / args.scene, args.truth, folder)
        return args.output
    attributes, views, width = what_to_show(args)
    output = args.output or SCENES / args.scene
    progress = partial(tqdm, desc=str(output), unit="view")
    with replaced(output, _CAPTURE, "world.json") as folder:
        write_capture(folder, attributes, views=views, width=width, height=width * 3 // 4, progress=progress)
    return output


def what_to_show(args: argparse.Namespace) -> tuple[Attributes, int, int]:
    """(what the scene has, views, width). UserError for what cannot be rendered."""
    views = _VIEWS if args.views is None else args.views
    width = _WIDTH if args.width is None else args.width
    if not 1 <= views <= _MOST_VIEWS:
        raise UserError(f"--views {views} has to be from 1 to {_MOST_VIEWS}")
    if width < _LEAST_WIDTH:
        raise UserError(f"--width {width} has to be {_LEAST_WIDTH} or more")
    attributes = SHIPPED[args.scene] if args.scene else Attributes.sample(args.seed)
    try:
        attributes = attributes.edited(**{name: v for name in _CHANGES if (v := getattr(args, name))})
    except ValueError as error:  # of a second flower, beside what is none
        raise UserError(f"--{error}") from error
    return attributes, views, width


if __name__ == "__main__":
    main()

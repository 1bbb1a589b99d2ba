"""Makes what docs/troubleshooting.md shows: trainings and edits that go wrong, each in one way.

    python scripts/symptoms.py                    # all, half an hour on two cores
    python scripts/symptoms.py order strong       # some

Works under outputs/symptoms and writes docs/symptoms/<name>.jpg: a photo, the render and its depth for trainings, the
source and the edit for edits. What is there already is made anew.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cds3d  # noqa: E402, F401  before torch

# isort: split

import imageio.v3 as iio  # noqa: E402
import numpy as np  # noqa: E402
from PIL import Image, ImageDraw  # noqa: E402

from cds3d.bench.fields import make_held_out_capture  # noqa: E402
from cds3d.cli import run_command  # noqa: E402
from cds3d.options import data_folder  # noqa: E402
from cds3d.pictures import colored_depth, depth_range, seen_depth, to_uint8  # noqa: E402
from cds3d.pocket.world.scenes import Attributes  # noqa: E402
from tensorf.captures import load_capture  # noqa: E402
from tensorf.errors import UserError  # noqa: E402
from tensorf.files import atomic  # noqa: E402
from tensorf.renderable import load_field  # noqa: E402

WORK, DOCS = Path("outputs/symptoms"), Path(__file__).resolve().parents[1] / "docs" / "symptoms"
WIDTH = 252


def run(command: str, *options: str) -> None:
    if run_command(command, [*options, "overwrite=true", "video_frames=0"]):
        raise UserError(f"cds3d {command} failed: see above")


def training(name: str, spoil: Callable[[list[Path]], None], *options: str) -> np.ndarray:
    """Train the flower after `spoil` has had its photos; a held-out photo of the whole capture, render and depth."""
    folder = WORK / name
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(data_folder("scenes") / "flower", folder)
    spoil(sorted((folder / "images").iterdir()))
    trained = WORK / f"{name}-field"
    run("train", "scene=capture", f"capture={folder}", "scene.check=false", f"output={trained}", "field=fast", *options)
    field = load_field(trained / "field.safetensors")
    capture = load_capture(data_folder("scenes") / "flower", width=WIDTH, space=field.space.kind)
    view = capture.test[1]
    rendered = field.render(capture.cameras[view])
    depth = seen_depth(rendered)
    picture = [rendered["color"].clamp(0, 1), colored_depth(depth, *depth_range([depth]))]
    return np.concatenate([capture.images[view].numpy(), *(to_uint8(p) for p in picture)], 1)


def thin_stem(name: str) -> np.ndarray:
    """A held-out photo of two flowers, one with a thin stem on grass, and its renders by field=default and =fine."""
    folder = WORK / name
    shutil.rmtree(folder, ignore_errors=True)
    flowers = Attributes.sample(28).edited(species="daisy", color="red", beside="yellow")
    make_held_out_capture(folder, flowers)
    pictures = []
    for preset in ("default", "fine"):
        trained = WORK / f"{name}-{preset}"
        options = ("scene=capture", f"capture={folder}", f"scene.width={WIDTH}", f"field={preset}")
        run("train", *options, f"output={trained}")
        pictures.append(iio.imread(trained / "views" / "00.png")[..., :3])
    return np.concatenate([pictures[0], pictures[1][:, WIDTH:]], 1)


def edit(name: str, *options: str) -> np.ndarray:
    """The first view of an edit: the source and the edit, side by side."""
    run("edit", f"output={WORK / name}", *options)
    return iio.imread(WORK / name / "views" / "00.png")[..., :3]


def image_edit(name: str, *options: str) -> np.ndarray:
    """A photo of the shipped cat, and its edit as large as the photo, side by side."""
    photo = data_folder("scenes") / "cat" / "images" / "view000.jpg"
    run("edit", f"image={photo}", "src=a cat", "tgt=a pig", f"output={WORK / name}", *options)
    whole, edited = Image.open(photo), Image.open(WORK / name / "edited.png").convert("RGB")
    return np.concatenate([np.asarray(whole), np.asarray(edited.resize(whole.size, Image.BILINEAR))], 1)


def few_photos(photos: list[Path]) -> None:
    bounds = photos[0].parents[1] / "poses_bounds.npy"
    kept = range(0, len(photos), 5)
    np.save(bounds, np.load(bounds, allow_pickle=False)[list(kept)])
    for i, photo in enumerate(photos):
        if i not in kept:
            photo.unlink()


def passer_by(photos: list[Path]) -> None:
    """Somebody in blue stands before the camera, in every second photo at another place."""
    for i, photo in enumerate(photos[::2]):
        picture = Image.open(photo).convert("RGB")
        width, height = picture.size
        x = (0.1 + 0.8 * i / len(photos[::2])) * width
        outline = (x - 0.06 * width, 0.15 * height, x + 0.06 * width, 0.85 * height)
        ImageDraw.Draw(picture).ellipse(outline, (40, 60, 160))
        picture.save(photo, "JPEG", quality=95)


def other_order(photos: list[Path]) -> None:
    contents = [photo.read_bytes() for photo in photos]
    for photo, content in zip(photos, contents[7:] + contents[:7], strict=True):
        photo.write_bytes(content)


def other_exposures(photos: list[Path]) -> None:
    random = np.random.default_rng(0)
    for photo in photos:
        gain = np.exp(random.normal(0, 0.35, 3))
        picture = (iio.imread(photo) * gain).clip(0, 255).astype(np.uint8)
        iio.imwrite(photo, picture, quality=95)


PIG = ("scene=cat", "tgt=a pig")
RED = ("scene=flower", "tgt=a red flower")
NO_REGION = ("edit.region.mask_threshold=0", "edit.preservation=0")
FOGGY = ("scene.space=unbounded", "scene.bound=0.1", "field.sightings=0")
SYMPTOMS: dict[str, Callable[[], np.ndarray]] = {
    "order": lambda: training("order", other_order),
    "exposure": lambda: training("exposure", other_exposures, "field.exposure=0"),
    "fog": lambda: training("fog", lambda photos: None, *FOGGY),
    "few": lambda: training("few", few_photos),
    "moved": lambda: training("moved", passer_by),
    "thin": lambda: thin_stem("thin"),
    "strong": lambda: edit("strong", *RED, "guidance.scale=25"),
    "drift": lambda: edit("drift", *RED, *NO_REGION),
    "shape": lambda: edit("shape", *PIG),
    "haze": lambda: edit("haze", *PIG, "edit=shape", "edit.source_share=0", "edit.volume.haze=0"),
    "part": lambda: edit("part", "scene=mug", "tgt=a wooden mug"),
    "soft": lambda: image_edit("soft", "edit=latent"),
    "stripes": lambda: image_edit("stripes", "edit=pixels"),
}


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(SYMPTOMS)}; all by default")
    args = parser.parse_args(argv)
    if unknown := [name for name in args.names if name not in SYMPTOMS]:
        parser.error(f"{unknown[0]!r} is none of {', '.join(SYMPTOMS)}")
    DOCS.mkdir(exist_ok=True)
    for name in args.names or SYMPTOMS:
        picture = SYMPTOMS[name]()
        with atomic(DOCS / f"{name}.jpg") as partial:
            Image.fromarray(picture).save(partial, "JPEG", quality=88)
        print(f"docs/symptoms/{name}.jpg", flush=True)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(f"error: {error}") from error

"""The inputs that are spoiled: for each format its files, how they are spoiled, and the command that reads them."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from campaigns import mutations as m
from campaigns.tiny import Inputs

SMALL = ("field.iterations=1", "field.final_rays=2000", "field.prune_rays=2000", "video_frames=0", "save_every=1")
OUT = "output=out"


@dataclass(frozen=True)
class Family:
    """good: a folder with whole inputs, which each try copies. spoiled: pattern of file names -> how they are spoiled;
    {} where options are. command: of a generator of chance, the command line, relative to the copy.
    """

    name: str
    good: Path
    spoiled: dict[str, m.Spoil]
    command: Callable[[random.Random], list[str]]

    def spoil(self, folder: Path, chance: random.Random) -> str:
        """Spoil one file of a copy in `folder`, and say which."""
        files = [(p, how) for pattern, how in self.spoiled.items() for p in sorted(folder.glob(pattern))]
        if not files:
            return "options"
        path, how = chance.choice(files)
        data = path.read_bytes()
        if chance.random() < 0.02:
            path.unlink()
            return f"{path.relative_to(folder)} deleted"
        path.write_bytes(how(data, chance))
        return str(path.relative_to(folder))


def families(inputs: Inputs, folder: Path) -> list[Family]:
    """All formats; their whole inputs are made in `folder`."""
    return list(_families(inputs, _Good(inputs, folder)))


class _Good:
    """Whole inputs, one folder each."""

    def __init__(self, inputs: Inputs, folder: Path):
        self.inputs, self.folder = inputs, folder

    def make(self, name: str, make: Callable[[Path], None]) -> Path:
        folder = self.folder / name
        folder.mkdir(parents=True)
        make(folder)
        return folder

    def llff(self, folder: Path) -> None:
        from cds3d.pocket.world.capture import write_capture
        from cds3d.pocket.world.scenes import Attributes

        flower = Attributes(2_000_026, "flower", "daisy", "yellow", "garden")
        write_capture(folder / "c", flower, views=6, width=32, height=24)

    def dataset(self, folder: Path) -> None:
        """nerfstudio's transforms.json, a COLMAP model and pictures, of `cds3d export`."""
        shutil.copytree(self.inputs.starts["dataset"] / "x", folder / "c")

    def transforms(self, folder: Path) -> None:
        self.dataset(folder)
        shutil.rmtree(folder / "c" / "sparse")

    def colmap(self, folder: Path) -> None:
        self.dataset(folder)
        (folder / "c" / "transforms.json").unlink()

    def colmap_text(self, folder: Path) -> None:
        self.colmap(folder)
        model = folder / "c" / "sparse" / "0"
        shutil.rmtree(model)
        model.mkdir()
        _write_colmap_text(model, self._transforms())

    def run(self, folder: Path) -> None:
        shutil.copytree(self.inputs.starts["edit"], folder, dirs_exist_ok=True)
        for name in ("source", "run"):
            path = folder / "outputs" / "daisies" / name
            for large in ("logs", "views", "video.mp4", "comparison.mp4"):
                shutil.rmtree(path / large, ignore_errors=True)
                (path / large).unlink(missing_ok=True) if (path / large).is_file() else None

    def unfinished(self, folder: Path) -> None:
        self.run(folder)
        (folder / "outputs" / "daisies" / "run" / "metrics.json").unlink()

    def source(self, folder: Path) -> None:
        self.run(folder)
        shutil.rmtree(folder / "outputs" / "daisies" / "run")

    def masks(self, folder: Path) -> None:
        from PIL import Image

        self.source(folder)
        (folder / "masks").mkdir()
        for picture in self.inputs.pictures.iterdir():
            mask = Image.new("L", Image.open(picture).size)
            mask.paste(255, (0, 0, mask.width // 2, mask.height))  # halves of all views: they meet in space
            mask.save(folder / "masks" / picture.name)

    def views(self, folder: Path) -> None:
        self.source(folder)
        shutil.copytree(self.inputs.pictures, folder / "red")

    def picture(self, folder: Path) -> None:
        shutil.copy(self.inputs.picture, folder / "p.png")

    def prior(self, folder: Path) -> None:
        self.picture(folder)
        shutil.copytree(self.inputs.prior, folder / "sd")

    def path(self, folder: Path) -> None:
        self.source(folder)
        shutil.copy(self.inputs.starts["dataset"] / "x" / "transforms.json", folder / "t.json")
        matrix = [1.0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0.2, 0, 0, 0, 1]
        cameras = [{"camera_to_world": matrix, "fov": 50.0 + i, "aspect": 1.3} for i in range(2)]
        told = {
            "camera_type": "perspective",
            "render_height": 24,
            "render_width": 32,
            "camera_path": cameras,
            "fps": 24,
        }
        (folder / "p.json").write_text(json.dumps(told))

    def sweep(self, folder: Path) -> None:
        text = "scenes: [flower]\nedits: [a red flower, a mug -> a blue mug]\nobjectives: [cds, dds]\n"
        (folder / "s.yaml").write_text(text + "options: ['', 'edit.lr=0.02 objective.scale=3']\nseeds: [0, 1]\n")

    def nsvf(self, folder: Path) -> None:
        """The photos and cameras of `dataset`, as NSVF writes them."""
        import numpy as np

        table = self._transforms()
        for part in ("pose", "rgb"):
            (folder / "c" / part).mkdir(parents=True)
        for i, frame in enumerate(table["frames"]):
            name = f"{2 if i == 1 else 0}_{i:04d}"
            pose = np.array(frame["transform_matrix"]) @ np.diag([1, -1, -1, 1])
            np.savetxt(folder / "c" / "pose" / f"{name}.txt", pose)
            photo = self.inputs.starts["dataset"] / "x" / frame["file_path"]
            shutil.copy(photo, folder / "c" / "rgb" / f"{name}{photo.suffix}")
        numbers = [table[key] if key in table else table["frames"][0][key] for key in ("fl_x", "cx", "cy")]
        lines = [" ".join(map(str, [*numbers, 0.0])), "0. 0. 0.", "0.", "1.", f"{table['h']} {table['w']}"]
        (folder / "c" / "intrinsics.txt").write_text("\n".join(lines) + "\n")

    def official(self, folder: Path) -> None:
        """Checkpoints of TensoRF's authors: of a forward-facing capture with a mask, and of boxes."""
        from authors import random_model

        self.llff(folder)
        self.nsvf(folder / "box")
        random_model(ndc=True, masked=True, fea2denseAct="relu", gain=0.5).save(folder / "m0.th")
        random_model("whole", masked=True, density_shift=-3.0, gain=0.5).save(folder / "m1.th")
        random_model("cp", shadingMode="SH", gain=0.8).save(folder / "m2.th")

    def _transforms(self) -> dict:
        return json.loads((self.inputs.starts["dataset"] / "x" / "transforms.json").read_text())

    def nothing(self, folder: Path) -> None:
        self.views(folder)
        self.picture(folder)


def _families(inputs: Inputs, good: _Good) -> Iterator[Family]:
    train = ["train", "--capture", "c", "threads=1", *inputs.scene()[5:], *SMALL, OUT]
    prompts, scene = inputs.prompts(), [*inputs.scene(), *SMALL]
    edit = ["edit", *scene, *prompts, "edit.iterations=1", "edit.width=48", OUT]
    onto = ["edit", *inputs.scene(), *prompts, "edit.iterations=1", "edit.width=48", OUT]  # a source that is there
    refit = ["edit", *scene, *inputs.words(), "--views", "red", "edit.width=48", OUT]
    image = ["edit", "--image", "p.png", *prompts, "edit.iterations=1", "threads=1", OUT]
    run, source = "outputs/daisies/run", "outputs/daisies/source"

    def fixed(options: list[str]) -> Callable[[random.Random], list[str]]:
        return lambda chance: options

    yield Family("transforms.json", good.make("transforms", good.transforms), {"c/*.json": m.json_file}, fixed(train))
    yield Family("poses_bounds.npy", good.make("llff", good.llff), {"c/*.npy": m.array_file}, fixed(train))
    yield Family("COLMAP binary", good.make("colmap", good.colmap), {"c/sparse/0/*": m.binary_file}, fixed(train))
    yield Family("COLMAP text", good.make("text", good.colmap_text), {"c/sparse/0/*": m.text_file}, fixed(train))
    yield Family("photos", good.make("photos", good.llff), {"c/images/*": m.picture_file}, fixed(train))
    yield Family("an image", good.make("picture", good.picture), {"p.png": m.picture_file}, fixed(image))
    yield Family("masks", good.make("masks", good.masks), {"masks/*": m.picture_file}, fixed([*onto, "mask=masks"]))
    yield Family("edited views", good.make("views", good.views), {"red/*": m.picture_file},
                 fixed([*refit, "refit.iterations=1"]))  # fmt: skip
    rendered = ["frames=2", "width=32", "threads=1", "output=out.mp4"]
    yield Family("camera paths", good.make("paths", good.path), {"?.json": m.json_file},
                 lambda chance: ["render", source, f"path={chance.choice('tp')}.json", *rendered])  # fmt: skip
    of_run = {f"{run}/config.yaml": m.yaml_file, f"{run}/metrics.json": m.json_file,
              f"{run}/field.safetensors": m.tensors_file}  # fmt: skip
    onward = ["edit", "--run", run, "--tgt", "a blue flower", *prompts[4:], "edit.iterations=1", "edit.width=48"]
    onward += ["threads=1", "video_frames=2", OUT]
    uses = [["render", run, *rendered], ["export", run, "points", "points=50", "output=out.ply"],
            ["export", run, "dataset", "points=50", OUT], ["list"], onward]  # fmt: skip
    yield Family("run folders", good.make("run", good.run), of_run, lambda chance: chance.choice(uses))
    again = [*onto[:-1], "save_every=2", "edit.iterations=4", "video_frames=2", "resume=true", f"output={run}"]
    again = [o for o in again if o not in ("save_every=1", "video_frames=0", "edit.iterations=1")]
    states = {f"{run}/state/state.pt": m.binary_file, f"{run}/config.yaml": m.yaml_file}
    yield Family("states", good.make("states", good.unfinished), states, fixed(again))
    yield Family("sweep files", good.make("sweep", good.sweep), {"s.yaml": m.yaml_file},
                 fixed(["sweep", "file=s.yaml", "output=out"]))  # fmt: skip
    files = {"sd/*.json": m.json_file, "sd/*/*.json": m.json_file, "sd/*/*.safetensors": m.tensors_file,
             "sd/*/*.txt": m.text_file}  # fmt: skip
    of_prior = [o if not o.startswith("guidance.path") else "guidance.path=sd" for o in image]
    yield Family("priors", good.make("prior", good.prior), files, fixed(of_prior))
    yield Family("NSVF", good.make("nsvf", good.nsvf), {"c/*.txt": m.text_file, "c/pose/*.txt": m.text_file,
                 "c/rgb/*": m.picture_file}, fixed(train))  # fmt: skip
    models, imports = good.make("official", good.official), ["scene.width=32", "threads=1", "video_frames=0", OUT]
    for i, (capture, kind) in enumerate((("c", "LLFF"), ("box/c", "box"), ("box/c", "CP"))):
        yield Family(f"TensoRF checkpoints, {kind}", models, {f"m{i}.th": m.checkpoint_file},
                     fixed(["import", f"m{i}.th", capture, *imports]))  # fmt: skip
    lines = [["train", *scene, OUT], edit, image, refit, ["render", source, *rendered],
             ["export", source, "points", "points=50", "output=out.ply"], ["sweep", 'edits=["a"]', OUT]]  # fmt: skip
    yield Family("options", good.make("options", good.nothing), {}, lambda chance: options_of(lines, chance))


_KEPT = ("iterations", "_every", "frames", "width", "output", "resolution", "rays", "threads", "batch", "cells")
_VALUES = ("", "null", "true", "-1", "0", "0.5", "nan", "inf", "-inf", "1e-30", "x", "[]", "[1,2]", "{a:1}", "{", "'")
_VALUES += (
    '"',
    "${seed}",
    "${x",
    "../..",
    "💐",
    "a=b",
    "a,b",
    "\\",
    "  ",
    "$HOME",
    "x" * 3000,
    "0x10",
    "1_000",
    "--",
    "\n",
)


def options_of(lines: list[list[str]], chance: random.Random) -> list[str]:
    """One of the command lines with an option of its own, or of nobody's, set to something odd."""
    from omegaconf import OmegaConf

    from cds3d.options import dotted_keys, load_config

    line = list(chance.choice(lines))
    keys = dotted_keys(OmegaConf.to_container(load_config(line[0], []), resolve=False))
    act = chance.randrange(6)
    if act == 0:  # a prompt or another flag
        flags = ("--tgt", "--src", "--where", "--run", "--image", "--views", "--capture", "--mask", "--prompt")
        return [*line, chance.choice(flags), chance.choice((*_VALUES, *m.ODD_TEXTS[:8]))]
    if act == 1:  # anything at all
        word = "".join(chance.choice("abc.=-+~{}[]'\"$/ 💐\\@") for _ in range(chance.randrange(1, 12)))
        line.insert(chance.randrange(1, len(line) + 1), word)
        return line
    key, value = chance.choice(keys), chance.choice(_VALUES)
    if key.endswith(_KEPT) and value in ("1_000", "0x10"):  # a valid number that takes long
        value = "-1"
    return [*[o for o in line if o != OUT or key != "output"], f"{key}={value}"]


def _write_colmap_text(model: Path, table: dict) -> None:
    import numpy as np

    from tensorf.captures.writing import _quaternion

    cameras, images = [], []
    for i, frame in enumerate(table["frames"], 1):
        lens = " ".join(str(frame[k]) for k in ("fl_x", "fl_y", "cx", "cy"))
        cameras.append(f"{i} PINHOLE {table['w']} {table['h']} {lens}")
        pose = np.array(frame["transform_matrix"])[:3] * [1, -1, -1, 1]
        rotation = pose[:, :3].T
        numbers = [*_quaternion(rotation), *(-rotation @ pose[:, 3])]
        name = Path(frame["file_path"]).name
        images.append(f"{i} {' '.join(map(str, numbers))} {i} {name}\n1.0 2.0 1")
    (model / "cameras.txt").write_text("\n".join(cameras) + "\n")
    (model / "images.txt").write_text("\n".join(images) + "\n")
    (model / "points3D.txt").write_text("1 0.1 0.2 0.3 200 100 50 0.5 1 0 2 0\n")

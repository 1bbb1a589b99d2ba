"""Tiny inputs, and the commands of the campaigns on them: whole runs of a second or two, with their true results."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from campaigns import forks
from campaigns.wholeness import contents

LIMIT = 300.0  # seconds after which a run of a few seconds counts as hanging, on a busy machine too


@dataclass(frozen=True)
class Case:
    """A command that is broken off and called again. begin: its options. again: more options of every later call.

    starts: what is there before: nothing, the source field, or an edit. done: the file whose presence says that it
    has finished. states: whose steps go on from which state, relative to the folder that it runs in.
    """

    name: str
    command: str
    begin: tuple[str, ...]
    again: tuple[str, ...] = ("resume=true",)
    starts: str = "source"
    done: str = "outputs/daisies/run/metrics.json"
    states: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Truth:
    """An unbroken run of a case: its files, its seconds, and how often it changes a file or folder."""

    files: dict
    seconds: float
    writes: int


class Inputs:
    """A capture of six photos, a prior of random weights, pictures, finished runs; made in `folder`, by forks."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.capture, self.prior = folder / "captures" / "daisies", folder / "sd"
        self.pictures, self.picture = folder / "red", folder / "a flower.png"
        self.starts = {name: folder / "starts" / name for name in ("nothing", "source", "edit")}
        self._do(self._make)
        self._warm()
        for start in self.starts.values():
            start.mkdir(parents=True)
        cases = {case.name: case for case in self.cases()}
        source = self.starts["source"]
        self.run_whole(cases["train"], source)
        (source / "outputs" / "daisies" / "run").rename(source / "outputs" / "daisies" / "source")
        shutil.copytree(source, self.starts["edit"], dirs_exist_ok=True)
        self.run_whole(cases["edit"], self.starts["edit"])

    def _do(self, work: Callable[[], None]) -> None:
        child = forks.Child(work, self.folder, self.folder / "making.log")
        if child.wait(LIMIT) != 0:
            raise RuntimeError(f"the inputs cannot be made: {child.lines()[-1:]}")

    def _make(self) -> None:
        import imageio.v3 as iio
        from tiny_models import build_pipeline

        from cds3d.pocket.world.capture import WorldCapture, write_capture
        from cds3d.pocket.world.scenes import Attributes

        flower = Attributes(2_000_026, "flower", "daisy", "yellow", "garden")
        write_capture(self.capture, flower, views=6, width=64, height=48)
        build_pipeline("epsilon", self.folder / "tokenizer").save_pretrained(self.prior, safe_serialization=True)
        world = WorldCapture.read(self.capture)
        self.pictures.mkdir()
        for name in world.cameras:
            iio.imwrite(
                self.pictures / f"{name}.png", world.view(name, world.attributes.edited(color="red"), 64, 48).image
            )
        iio.imwrite(self.picture, world.view(next(iter(world.cameras)), world.attributes, 48, 36).image)

    def _warm(self) -> None:
        """Do the commands once in this process, which imports and loads all that each fork would have to."""
        warm = self.folder / "warm"
        warm.mkdir()
        here, error = Path.cwd(), os.dup(2)
        log = os.open(self.folder / "warm.log", os.O_WRONLY | os.O_CREAT)
        try:
            os.chdir(warm)
            os.dup2(log, 2)
            for case in self.cases():
                if case.name in ("edit and its source", "edit of pixels", "video", "dataset"):
                    if do(case, []) != 0:
                        raise RuntimeError(f"{case.name} fails: {(self.folder / 'warm.log').read_text()[-300:]}")
                    if case.name.startswith("edit"):
                        (warm / "outputs/daisies/run").rename(warm / case.name)
        finally:
            os.dup2(error, 2)
            os.chdir(here)
            for file in (log, error):
                os.close(file)
        shutil.rmtree(warm)
        forks.require_one_thread()

    # --- the commands

    def scene(self) -> list[str]:
        from fakes import TINY_FIELD, TINY_SCENE

        return ["--capture", str(self.capture), *TINY_SCENE, *TINY_FIELD]

    def words(self) -> list[str]:
        return ["--src", "a yellow flower", "--tgt", "a red flower"]

    def prompts(self) -> list[str]:
        return [*self.words(), f"guidance.path={self.prior}"]

    def edit(self) -> list[str]:
        return [*self.scene(), *self.prompts(), "edit.iterations=4", "edit.width=48"]

    def cases(self) -> list[Case]:
        run, source = "outputs/daisies/run", "outputs/daisies/source"
        states, output = {"Editor": run, "Trainer": source}, f"output={run}"
        image = ["--image", str(self.picture), *self.prompts(), "threads=1", output, "edit.iterations=6"]
        saved = ["save_every=2"]
        sweep = [f"scenes=[{self.capture}]", 'edits=["a yellow flower -> a red flower"]', "seeds=[0,1]", "jobs=2"]
        options = " ".join([o for o in self.edit() if "=" in o and not o.startswith(("threads", "video_frames"))])
        return [
            Case("train", "train", (*self.scene(), *saved, output), starts="nothing", states={"Trainer": run}),
            Case("edit", "edit", (*self.edit(), *saved, output), states=states),
            Case("edit and its source", "edit", (*self.edit(), *saved, output), starts="nothing", states=states),
            Case("edit of shape", "edit", (*self.edit(), *saved, output, "edit=shape", "edit.volume.look=0.5",
                                           "edit.region.mask_threshold=0.3"), states=states),
            Case("redrawn edit", "edit", (*self.edit(), *saved, output, "edit=redraw", "edit.volume.look=0.5",
                                          "edit.region.mask_threshold=0.3", "edit.redraw.views=2",
                                          "edit.redraw.steps=5", "edit.redraw.polish=1"),
                 states={"RedrawnShape": run, "Trainer": source}),
            Case("edit of pictures", "edit", (*self.edit(), *saved, output, "edit=pictures", "edit.iterations=2",
                                              "edit.fit.iterations=3", "edit.fit.agreement=0.01",
                                              "edit.region.mask_threshold=0.01"),
                 states={"PictureEdit": run, "Trainer": source}),
            Case("edit of latents", "edit", (*image, *saved), states=states),
            Case("edit of pixels", "edit", (*image, *saved, "edit=pixels", "paste=true"), states=states),
            Case("refit", "edit", (*self.scene(), *self.words(), "--views", str(self.pictures), *saved, output,
                                   "refit.iterations=6", "edit.width=48"), states={"Trainer": run}),
            Case("more iterations", "edit", (*self.edit(), *saved, output, "edit.iterations=8", "resume=true"),
                 starts="edit", states=states),
            Case("overwrite", "edit", (*self.edit(), *saved, output, "seed=1", "overwrite=true"), again=(),
                 starts="edit"),
            Case("dataset", *_export(source, "dataset", "x/transforms.json")),
            Case("points", *_export(source, "points", "x.ply")),
            Case("video", "render", (source, "frames=3", "threads=1", "depth=true"), again=(),
                 done=f"{source}/spiral_depth.mp4"),
            Case("frames", "render", (source, "frames=3", "threads=1", "depth=true", "format=png", "output=x"),
                 again=(), done="x_depth/depth.json"),
            Case("viewer's edit", "job", (*self.edit(), *saved, output, "preview_every=1"), states=states),
            Case("sweep", "sweep", (*sweep, f'options=["{options}"]', "output=sweep"), again=(), done="sweep/done"),
        ]  # fmt: skip

    def viewer_case(self) -> Case:
        """The viewer of the source, and an edit that is started from its page. The edit keeps no state by itself."""
        run = "outputs/daisies/a-red-flower"
        edit = json.dumps([f"guidance.path={self.prior}", "edit.width=48"])
        options = (
            "run=outputs/daisies/source",
            "port=0",
            "width=48",
            "moving_width=24",
            "threads=1",
            f"options={edit}",
        )
        return Case("viewer itself", "view", options, again=(), done=f"{run}/metrics.json", states={"Editor": run})

    # --- their runs

    def run_whole(self, case: Case, folder: Path) -> Truth:
        """Run a case unbroken. RuntimeError if it fails: then nothing can be said of broken runs."""
        count = folder.parent / f"{folder.name}.writes"

        def work() -> int:
            counted = forks.at_write(0, forks.die)
            code = do(case, [])
            count.write_text(str(counted()))
            return code

        child = forks.Child(work, folder, folder.parent / f"{folder.name}.log")
        seconds = forks.seconds_of(lambda: child.wait(LIMIT))
        if child.returncode != 0:
            child.kill()
            raise RuntimeError(f"{case.name} fails unbroken ({child.returncode}): {child.lines()[-1:]}")
        return Truth(contents(folder), seconds, int(count.read_text()))

    def begin(self, case: Case, folder: Path) -> Path:
        """A folder as it is before the case's first call."""
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.starts[case.starts], folder)
        return folder


def _export(source: str, kind: str, done: str) -> tuple[str, tuple[str, ...], tuple[str, ...], str, str]:
    return "export", (source, kind, f"output={done.split('/')[0]}", "points=400", "threads=1"), (), "source", done


def do(case: Case, more: list[str]) -> int:
    """One call of a case's command, in this process and folder."""
    from campaigns import viewers

    options = [*case.begin, *more]
    if case.command == "job":
        return _viewer_job(options)
    if case.command == "view":
        return viewers.view(options)
    code = forks.run_command(case.command, options)
    if case.command == "sweep" and code == 0:
        Path(case.done).write_text("")
    return code


def _viewer_job(options: list[str]) -> int:
    """An edit as the viewer starts it, watched as it does."""
    from cds3d.jobs import Job

    job = Job("edit", options, Path("outputs/daisies/run"))
    while job.running:
        job.progress()
        time.sleep(0.02)
    outcome = job.outcome()
    if outcome != "done":
        os.write(2, f"error: {outcome}\n".encode())
    return 0 if outcome == "done" else 1


def is_done(case: Case, folder: Path) -> bool:
    return (folder / case.done).exists()


def read_json(path: Path) -> dict:
    return json.loads(path.read_text())

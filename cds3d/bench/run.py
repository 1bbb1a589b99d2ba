"""The benchmark of edits: which runs there are, doing those that are not done yet, and the report.

    python scripts/bench_edits.py --quick
    python scripts/bench_edits.py --full
    python scripts/bench_edits.py tasks=[] fields=[color,material] field_cases=4 output=outputs/bench/fields
    python scripts/bench_edits.py tasks=[] fields=[cat-cow] objectives=[bounds] output=outputs/bench/bounds
    cds3d bench tasks=[color] cases=4 objectives=[dds,cds] options='["objective.weight=6"]' output=outputs/bench/heavy

Stopped and started again with the same settings, it goes on from the runs that it finds.
"""

from __future__ import annotations

import hashlib
import json
import logging
import platform
import shutil
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from cds3d.bench import report
from cds3d.bench.fields import check_held_out_capture, edit_field, held_out_capture, make_held_out_capture
from cds3d.bench.images import bounds, edit_case
from cds3d.bench.looks import field_looks, image_looks
from cds3d.bench.tasks import IMAGE_TASKS, SHIPPED_FIELDS, Case, cases, other_looks
from cds3d.commands.baselines import build_baseline
from cds3d.commands.preparing import build_objective
from cds3d.editor import EditConfig
from cds3d.guidance import load_prior
from cds3d.jobs import usable_cores
from cds3d.kept_models import kept
from cds3d.options import RESERVED, boolean, build, dotted_keys, groups, load_config, pick_device, whole
from cds3d.pictures import write_image
from cds3d.pocket.model.judge import FILE as JUDGE
from cds3d.pocket.model.judge import load_judge
from cds3d.pocket.weights_path import WEIGHTS
from cds3d.sweep.calls import Calling, callers
from cds3d.sweep.pool import run_pool
from tensorf.errors import UserError
from tensorf.files import write_text

log = logging.getLogger("cds3d")

_SIZES = {
    "quick": {"tasks": ["color", "material", "cat-pig"], "cases": 2, "fields": [], "field_cases": 1},
    "full": {
        "tasks": list(IMAGE_TASKS),
        "cases": 12,
        "fields": [*SHIPPED_FIELDS, "color", "material", "cat-pig"],
        "field_cases": 3,
    },
}
_SHEET_ROWS = 6
_RETRIES = 2  # of a run whose process was killed, or that found no memory or disk
# Keys of edit.py that `options` may not set: they would falsify a run's label, or its place.
_OURS = (*RESERVED, "objective", "seed", "device")


@dataclass(frozen=True)
class Run:
    """One edit: `kind` is "image" or "field". objective: an objective's name, or of images a baseline's. "bounds" is no
    edit: of images it scores the unedited source and the true edit, and of both kinds the true edit in other looks.
    """

    kind: str
    task: str
    case: int
    objective: str
    seed: int
    tuning: bool
    options: tuple[str, ...]
    folder: str
    device: str
    start: str = "source"  # of images: or "truth"

    @property
    def name(self) -> str:
        return f"{self.case:03d}-{self.objective}-{self.seed}"

    @property
    def path(self) -> Path:
        return Path(self.folder) / self.task / f"{self.name}.json"

    def picture(self, which: str) -> Path:
        return self.path.with_name(f"{self.name}-{which}.png")


def bench_command(config: DictConfig) -> Path:
    """Do what `config` (configs/bench.yaml) says and return the path of edits.json."""
    settings, jobs = _settings(config), _jobs(config)
    output = Path(config.output)
    folder = output / "edits"
    runs = _plan(settings, folder, config.device)
    if not runs:
        raise UserError(
            "prompts that name a colour leave nothing open, so these fields have no bounds: name other fields"
        )
    for run in runs:
        if run.kind == "field" and run.task.removeprefix("field-") in IMAGE_TASKS:
            case, capture = _held_out(run)
            check_held_out_capture(capture, case.source)
    _claim(folder, settings, config.overwrite)
    try:
        _do([r for r in runs if r.kind == "image"], config, jobs, "images")
        _do([r for r in runs if r.kind == "field"], config, jobs if config.engine == "ray" else 1, "fields")
    except KeyboardInterrupt:
        raise KeyboardInterrupt("what is done is kept: the same command goes on from here") from None
    done = [json.loads(r.path.read_text()) for r in runs]
    edits, found = ([d for d in done if (d["objective"] == "bounds") == bound] for bound in (False, True))
    limits = report.summarise(
        [d | {"objective": name, "figures": figures} for d in found for name, figures in d["figures"].items()]
    )
    summary, progress, less = report.summarise(edits), report.equal_progress(edits), report.paired(edits)
    result = {
        "settings": settings,
        "machine": f"{platform.processor() or platform.machine()}, torch {torch.__version__}",
        "summary": summary,
        "bounds": limits,
        "equal_progress": progress,
        "less_cds": less,
        "curves": report.curves(edits),
        "runs": edits,
        "bounds_runs": found,
    }
    text = report.table(summary, limits, progress, less)
    _sheets(runs, folder)
    write_text(output / "edits.md", text)
    write_text(output / "edits.json", json.dumps(result, indent=1) + "\n")
    print(text)
    log.info("%s, %s, sheets in %s", output / "edits.json", output / "edits.md", folder)
    return output / "edits.json"


def _settings(config: DictConfig) -> dict:
    """The settings with the nulls filled in, and a fingerprint of all else that results depend on.

    UserError for what does not exist, before anything is written or deleted.
    """
    boolean(config, "tuning", "overwrite")
    if config.size not in _SIZES:
        raise UserError(f"size={config.size} is unknown; use quick or full")
    given = OmegaConf.to_object(config)
    settings = {k: v if given[k] is None else given[k] for k, v in _SIZES[config.size].items()}
    settings |= {k: given[k] for k in ("objectives", "baselines", "seeds", "tuning", "options")}
    for key in ("cases", "field_cases", "seeds"):
        whole(OmegaConf.create(settings), key, least=1)
    for key, known in (
        ("tasks", IMAGE_TASKS),
        ("fields", {**SHIPPED_FIELDS, **IMAGE_TASKS}),
        ("objectives", [*groups()["objective"], "bounds"]),
        ("baselines", [name for name in groups()["baseline"] if name != "none"]),
    ):
        values = settings[key]
        wrong = (
            [v for v in values if not isinstance(v, str) or v not in known] if isinstance(values, list) else [values]
        )
        if wrong or len(set(values)) < len(values):
            what = f"{wrong[0]} is unknown" if wrong else "a name comes twice"
            raise UserError(f"{key}: {what}; use a list of {', '.join(known)}, as in {key}=[{next(iter(known))}]")
    todo = settings["tasks"] and settings["objectives"] + settings["baselines"]
    if not todo and not (settings["fields"] and settings["objectives"]):
        raise UserError("tasks and fields, or objectives, are empty: there is nothing to do")
    if settings["tuning"] and (shipped := [f for f in settings["fields"] if f in SHIPPED_FIELDS]):
        raise UserError(f"tuning=true: fields has {shipped[0]}, a shipped capture, which is reported, not tuned on")
    if given["start"] not in ("source", "truth"):
        raise UserError(f"start={given['start']} is unknown; use source or truth")
    if given["start"] == "truth":
        if settings["fields"] or settings["baselines"]:
            raise UserError("start=truth is for objectives on images: leave out fields= and baselines=")
        settings["start"] = "truth"
    pick_device(config.device)
    _check_options(settings["options"], _bases(settings))
    load_judge()
    return settings | {"fingerprint": _fingerprint(settings)}


def _bases(settings: dict) -> list[tuple[str, ...]]:
    """How each kind of run's options of edit.py begin."""
    images = [_base("image", m) for m in settings["objectives"] + settings["baselines"] if settings["tasks"]]
    return images + [_base("field", m) for m in settings["objectives"] if settings["fields"]]


def _check_options(options: list, bases: list[tuple[str, ...]]) -> None:
    if not isinstance(options, list):
        raise UserError(f"options={options} has to be a list of key=value, as in '[\"objective.weight=6\"]'")
    for option in options:
        key = str(option).split("=", 1)[0]
        if not isinstance(option, str) or "=" not in option:
            raise UserError(f"options: {option} is not of the form key=value")
        if key in _OURS:
            raise UserError(f"options: {key} is the benchmark's own to set")
        if not any(option in _fitting(tuple(options), base) for base in bases):
            raise UserError(f"options: {option} is no option of edit.py that a run here has")


def _fingerprint(settings: dict) -> str:
    """A digest of the configurations that the runs resolve to, of the judge, and of a local model's weights."""
    digest, models = hashlib.sha256(JUDGE.read_bytes()), set()
    for base in _bases(settings):
        config = load_config("edit", [*base, *_fitting(tuple(settings["options"]), base)])
        _ = build_objective(config) if config.baseline.kind == "none" else build_baseline(config)
        build(EditConfig, config.edit, group="edit", seed=0)
        digest.update(OmegaConf.to_yaml(config, resolve=True).encode())
        path = Path(str(config.guidance.path)).expanduser()
        models.add(WEIGHTS if config.guidance.path == "pocket" else path)
    for model in sorted(models):
        for file in sorted(model.rglob("*.safetensors")) if model.is_dir() else [model] * model.is_file():
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _claim(folder: Path, settings: dict, overwrite: bool) -> None:
    path = folder / "settings.json"
    if overwrite and path.exists():
        shutil.rmtree(folder)
    if path.exists():
        if json.loads(path.read_text()) != settings:
            raise UserError(
                f"{folder} holds a benchmark of other settings, defaults or weights: "
                "give output=FOLDER, or overwrite=true"
            )
    elif folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is no benchmark's: give output=FOLDER")
    write_text(path, json.dumps(settings, indent=1) + "\n")


def _plan(settings: dict, folder: Path, device: str) -> list[Run]:
    common = dict(tuning=settings["tuning"], options=tuple(settings["options"]), folder=str(folder), device=device)
    common["start"] = settings.get("start", "source")
    objectives = [o for o in settings["objectives"] if o != "bounds"]
    runs = []
    for task in settings["tasks"]:
        for case in range(settings["cases"]):
            runs.append(Run("image", task, case, "bounds", 0, **common))
            for seed in range(settings["seeds"]):
                runs += [Run("image", task, case, m, seed, **common) for m in objectives + settings["baselines"]]
    for field in settings["fields"]:
        for case in range(1 if field in SHIPPED_FIELDS else settings["field_cases"]):
            for seed in range(settings["seeds"]):
                runs += [Run("field", f"field-{field}", case, o, seed, **common) for o in objectives]
            last = Run("field", f"field-{field}", case, "bounds", 0, **common)  # the scene's first trains its source
            if field in SHIPPED_FIELDS or other_looks(_held_out(last)[0].target):
                runs.append(last)
    return runs


def _jobs(config: DictConfig) -> int:
    if config.engine not in ("pool", "ray"):
        raise UserError(f"engine={config.engine} is unknown; use pool or ray")
    if config.engine == "pool" and config.address is not None:
        raise UserError(f"address={config.address} is for engine=ray")
    if config.jobs is not None:
        whole(config, "jobs", least=1)
        return config.jobs
    return 1 if config.engine == "pool" and pick_device(config.device).type == "cuda" else usable_cores()


def _do(runs: list[Run], config: DictConfig, jobs: int, label: str) -> None:
    """Do the runs that are not done yet, `jobs` at a time: in processes of one thread each, or on a cluster; here, with
    all threads, if jobs is 1. UserError in the end if some failed.
    """
    todo = [Calling(run.path, _one, run, after=_first(run, runs)) for run in runs]
    if not any(not work.done for work in todo):
        return
    with (
        tqdm(total=len(todo), initial=sum(work.done for work in todo), desc=label, unit="edit") as bar,
        callers(config.engine, jobs, config.address, config.device) as start,
    ):
        at_a_time = len(todo) if config.engine == "ray" else jobs
        run_pool(todo, at_a_time, _RETRIES, lambda work: bar.update(int(work.done)), poll=0.02, start=start)
    if failed := [work for work in todo if work.failure]:
        raise UserError(f"{len(failed)} of {len(todo)} {label} failed, {failed[0].folder}: {failed[0].failure}")


def _first(run: Run, runs: list[Run]) -> Path | None:
    """What a field's run waits for: the first run of its scene, which makes its capture and trains its source."""
    if run.kind == "image":
        return None
    first = next(r.path for r in runs if (r.task, r.case) == (run.task, run.case))
    return None if first == run.path else first


def _one(run: Run) -> None:
    """Do one run and write its figures, last, and its pictures."""
    base = _base(run.kind, run.objective)
    options = [*base, *_fitting(run.options, base), f"seed={run.seed}", f"device={run.device}"]
    result = {"task": run.task, "case": run.case, "objective": run.objective, "seed": run.seed}
    result |= {"device": str(pick_device(run.device)), "threads": torch.get_num_threads()}
    if run.kind == "field":
        folder = run.path.with_suffix("")
        unfinished = (folder / "state" / "state.pt").exists() and not (folder / "metrics.json").exists()
        options = [
            "video_frames=0",
            *options,
            f"output={folder}",
            f"resume={str(unfinished).lower()}",
        ]
        config = _field_config(run, options)
        result["prompts"] = [config.src, config.tgt]
        if run.objective == "bounds":
            result["figures"], pictures = field_looks(config), {}
        else:
            result["figures"], pictures = edit_field(config)
    else:
        case = cases(run.task, run.case + 1, tuning=run.tuning)[run.case]
        config = load_config("edit", options)
        guidance = config.guidance
        named = {key: guidance[key] for key in ("path", "dtype", "config", "revision")}
        prior, judge = load_prior(**named, device=pick_device(run.device)), kept("judge", (), load_judge)
        result["prompts"] = [case.src, case.tgt]
        if run.objective == "bounds":
            result["figures"], pictures = bounds(case, prior, judge) | image_looks(case, prior, judge), {}
        else:
            result["figures"], result["stages"], pictures = edit_case(case, config, prior, judge, run.start)
    for which, picture in pictures.items():
        write_image(run.picture(which), picture)
    write_text(run.path, json.dumps(result) + "\n")


def _held_out(run: Run) -> tuple[Case, Path]:
    """What a field's run edits, and where the capture of it is, or will be."""
    name, stretch = run.task.removeprefix("field-"), "tuning" if run.tuning else "held-out"
    case = cases(name, run.case + 1, tuning=run.tuning)[run.case]
    return case, held_out_capture(f"{stretch}-{name}-{run.case:03d}")


def _field_config(run: Run, options: list[str]) -> DictConfig:
    """The configuration of an edit: of a shipped capture, or of one that is made here of a held-out scene."""
    name = run.task.removeprefix("field-")
    if name in SHIPPED_FIELDS:
        config = load_config("edit", [*options, f"scene={name}"])
        config.src, config.tgt = config.scene.prompt, SHIPPED_FIELDS[name]
        return config
    config = load_config("edit", options)
    case, folder = _held_out(run)
    if not check_held_out_capture(folder, case.source):
        make_held_out_capture(folder, case.source)
    config.capture = str(folder)
    config.src, config.tgt = case.src, case.tgt
    return config


def _base(kind: str, method: str) -> tuple[str, ...]:
    """method: an objective or, of images, a baseline; bounds are scored as CDS is."""
    method = "cds" if method == "bounds" else method
    group = "objective" if method in groups()["objective"] else "baseline"
    return (f"{group}={method}", *(("edit=latent",) if kind == "image" else ()))


@lru_cache
def _keys(base: tuple[str, ...]) -> frozenset[str]:
    """Dotted keys and groups of edit.py's configuration with these options."""
    config = load_config("edit", list(base))
    return frozenset({*dotted_keys(OmegaConf.to_container(config)), *groups()})


def _known(option: str, base: tuple[str, ...]) -> bool:
    """Whether runs that begin with `base` have this option; presets of edit= are for fields."""
    key = option.split("=", 1)[0]
    return key in _keys(base) and not (key == "edit" and "edit=latent" in base)


def _fitting(options: tuple[str, ...], base: tuple[str, ...]) -> list[str]:
    """The options that these runs have: SDS and DDS have no objective.weight, images no edit.width.

    Groups among them come first: only edit=shape has edit.volume.grow.
    """
    chosen = tuple(o for o in options if o.split("=", 1)[0] in groups() and _known(o, base))
    return [o for o in options if _known(o, (*base, *chosen))]


def _sheets(runs: list[Run], folder: Path) -> None:
    for task in dict.fromkeys(r.task for r in runs):
        mine = [r for r in runs if r.task == task and r.objective != "bounds" and r.seed == 0]
        if not mine:
            continue
        rows = []
        for case in sorted({r.case for r in mine})[:_SHEET_ROWS]:
            edits = [r for r in mine if r.case == case]
            source, target = json.loads(edits[0].path.read_text())["prompts"]
            title = f'"{source}" to "{target}"'
            pictures = [edits[0].picture("source"), edits[0].picture("truth"), *(r.picture("edit") for r in edits)]
            rows.append((title, pictures))
        report.contact_sheet(
            folder / f"{task}.png", rows, ["source", "true edit", *dict.fromkeys(r.objective for r in mine)]
        )

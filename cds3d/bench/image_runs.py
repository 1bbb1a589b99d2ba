"""Every method over a set of images, each edit by the command `edit.py` into its own run folder.

OUT/<method>/<image>/ is an ordinary run folder. A finished one is not done again, and a half-done one goes on.
"""

from __future__ import annotations

import hashlib
import json
import logging
from itertools import count
from pathlib import Path

from omegaconf import OmegaConf

from cds3d.bench.items import Failure, Item
from cds3d.commands.baselines import build_baseline
from cds3d.commands.early import refuse_options_of_scenes
from cds3d.commands.edit import edit_command
from cds3d.commands.preparing import build_objective
from cds3d.editor import EditConfig
from cds3d.options import RESERVED, build, dotted_keys, groups, load_config, pick_device, set_text
from cds3d.sweep.calls import Calling, callers
from cds3d.sweep.pool import run_pool
from tensorf.captures.images import IMAGE_SUFFIXES, is_photo
from tensorf.errors import UserError, reason
from tensorf.files import write_text

log = logging.getLogger("cds3d")

# Keys of edit.py that the benchmark sets itself.
_OURS = (*RESERVED, "objective")
_RETRIES = 2  # of an edit whose process was killed, or that found no memory or disk
# Keys that change no picture: a benchmark may go on with others.
_FREE = ("device", "threads", "save_every", "video_frames")


def folder_items(folder: Path, src: str | None, tgt: str | None) -> list[Item]:
    """The pictures of a folder, by name, all with the same prompts.

    UserError if there is no such folder, it has no pictures, two differ by their suffix only, or a prompt is missing or
    is the other one.
    """
    for option, text in (("--src", src), ("--tgt", tgt)):
        if text is None or not text.strip():
            raise UserError(f'{option} is missing: say what the images show and should become, as in {option} "a cat"')
    if src.strip().lower() == tgt.strip().lower():
        raise UserError(f'--src and --tgt are both "{tgt.strip()}": there is nothing to edit')
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    files = [p for p in folder.iterdir() if is_photo(p)]
    if not files:
        raise UserError(f"{folder} has no images ({', '.join(IMAGE_SUFFIXES)})")
    items = [Item(p.stem, p, src.strip(), tgt.strip()) for p in sorted(files, key=lambda p: (p.stem, p.name))]
    for one, other in zip(items, items[1:]):
        if one.name == other.name:
            raise UserError(f"{one.path} and {other.path} have one name: rename one, since results go by the name")
    return items


def baseline_names() -> list[str]:
    return [name for name in groups()["baseline"] if name != "none"]


def plan(methods: list[str], baselines: list[str], options: list[str]) -> dict[str, list[str]]:
    """Each method's options of edit.py: its own, and those of `options` (key=value) that it has.

    UserError for unknown methods, for options that no method has or that are the benchmark's own to set, and for values
    that make no sense.
    """
    known_methods = groups()["objective"]
    for given, known, what in ((methods, known_methods, "--methods"), (baselines, baseline_names(), "--baselines")):
        if wrong := [m for m in given if m not in known]:
            raise UserError(f"{what}: {wrong[0]} is unknown; use some of {','.join(known)}")
    names = [*methods, *baselines]
    if not names:
        raise UserError("no method is given: use --methods or --baselines")
    if twice := [n for n in names if names.count(n) > 1]:
        raise UserError(f"{twice[0]} is given twice")
    for option in options:
        if "=" not in option:
            raise UserError(f"{option!r} is neither a flag nor key=value; see --help")
        if option.split("=", 1)[0] in _OURS:
            raise UserError(f"{option}: this option is the benchmark's own to set")
    chosen = {name: [f"{'baseline' if name in baselines else 'objective'}={name}", *_preset(options)] for name in names}
    keys = {name: {*dotted_keys(OmegaConf.to_container(load_config("edit", own)))} for name, own in chosen.items()}
    for option in options:
        key = option.split("=", 1)[0]
        if not any(key in k for k in keys.values()):
            raise UserError(f"unknown option {key}: no method has it; edit.py --help lists all")
        for name, own in chosen.items():
            if key in keys[name] and option not in own:
                own.append(option)
    for own in chosen.values():
        config = load_config("edit", own)
        pick_device(config.device)
        refuse_options_of_scenes(config)
        build(EditConfig, config.edit, group="edit", seed=config.seed)
        build_objective(config) if config.baseline.kind == "none" else build_baseline(config)
        if config.edit.get("parameter") is None:
            raise UserError("images are edited with edit=latent or edit=pixels")
    return chosen


def _preset(options: list[str]) -> list[str]:
    """Groups come first: which other options there are depends on them. Images need edit=latent or edit=pixels."""
    given = [o for o in options if o.split("=", 1)[0] in groups()]
    return given if any(o.startswith("edit=") for o in given) else ["edit=latent", *given]


def claim(output: Path, items: list[Item], chosen: dict[str, list[str]]) -> None:
    """Write OUT/settings.json, or compare with it. UserError if OUT was begun with other pictures, prompts or options.

    Methods and images may be added later.
    """
    path = output / "settings.json"
    now = {
        "prompts": {item.name: [item.src, item.tgt] for item in items},
        "pictures": {item.name: hashlib.sha256(item.path.read_bytes()).hexdigest()[:16] for item in items},
        "options": {name: sorted(o for o in own if o.split("=", 1)[0] not in _FREE) for name, own in chosen.items()},
    }
    if path.is_file():
        try:
            before = json.loads(path.read_text())
            before["options"] = {name: sorted(own) for name, own in before["options"].items()}
            for part, values in now.items():
                for name, value in values.items():
                    if before[part].get(name, value) != value:
                        raise UserError(
                            f"{output} was begun with {before[part][name]} for {name}, not {value}: "
                            "give another --output, or the same pictures, prompts and options"
                        )
                now[part] = before[part] | values
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise UserError(f"{path} is damaged ({reason(error)}): give another --output") from error
    elif output.is_file() or output.is_dir() and any(output.iterdir()):
        raise UserError(f"{output} is not a benchmark's folder: give another --output")
    write_text(path, json.dumps(now, indent=1) + "\n")


def run_all(
    items: list[Item],
    chosen: dict[str, list[str]],
    output: Path,
    jobs: int = 1,
    engine: str = "pool",
    address: str | None = None,
) -> list[Failure]:
    """Do the edits that are not done yet, image by image, and return those that failed.

    jobs, engine, address: as of `cds3d sweep`; one at a time is done in this process.
    """
    todo = [
        Calling(output / name / item.name / "metrics.json", _run, item, chosen[name], output / name / item.name)
        for item in items
        for name in chosen
    ]
    failures, waiting = [], [work for work in todo if not work.done]
    if not waiting:
        return failures
    counted = count(len(todo) - len(waiting) + 1)

    def changed(work: Calling) -> None:
        item, _, folder = work.arguments
        if work.failure:
            failures.append(Failure(folder.parent.name, item.name, work.failure))
            log.warning("%s, %s: failed: %s", item.name, folder.parent.name, work.failure)
        elif work.done:
            log.info("%d of %d: %s, %s", next(counted), len(todo), item.name, folder.parent.name)

    device = load_config("edit", next(iter(chosen.values()))).device
    with callers(engine, jobs, address, device) as start:
        at_a_time = len(waiting) if engine == "ray" else jobs
        run_pool(waiting, at_a_time, _RETRIES, changed, poll=0.02, start=start)
    return failures


def _run(item: Item, options: list[str], folder: Path) -> None:
    config = load_config("edit", options)
    for key, value in (("image", str(item.path)), ("src", item.src), ("tgt", item.tgt), ("output", str(folder))):
        set_text(config, key, value, key)
    config.resume = (folder / "state" / "state.pt").exists()
    edit_command(config)

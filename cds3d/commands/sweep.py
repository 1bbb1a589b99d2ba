"""`cds3d sweep`: many edits, in one folder and one table."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from omegaconf import DictConfig
from tqdm import tqdm

from cds3d.commands.command import command
from cds3d.commands.sources import take_over_source
from cds3d.commands.worlds import edited_from, fingerprint
from cds3d.holding import hold
from cds3d.jobs import usable_cores
from cds3d.options import whole
from cds3d.sweep.plan import Task, plan, scene_config
from cds3d.sweep.pool import Work, run_pool, works
from cds3d.sweep.report import Reporter
from tensorf import locks
from tensorf.captures.sources import has_poses
from tensorf.errors import UserError
from tensorf.files import is_partial

log = logging.getLogger("cds3d")

_HANDED_OVER = 1000  # runs that Ray has at a time, to do or to let wait: each that waits takes 40 KB of this process


@command
def sweep_command(config: DictConfig) -> Path:
    """Do what `config` (configs/sweep.yaml) says that is not done yet, and return the folder.

    UserError at the end if some edits failed; all others are done then, and the table tells which.
    """
    _check(config)
    output = Path(config.output)
    ours = (output / "sweep.json").exists() or not output.exists()
    if not ours and not all(p.name == locks.NAME or is_partial(p) for p in output.iterdir()):
        raise UserError(f"{output} is no sweep's folder: give another output=")
    tasks = plan(config, output)
    fixed = [f"device={config.device}", f"threads={config.threads_each}"]
    todo = works(tasks, [*fixed, f"video_frames={config.video_frames}"], [*fixed, "video_frames=0"])
    output.mkdir(parents=True, exist_ok=True)
    hold(output)
    if config.storage is not None:
        from cds3d.sweep.mirror import mirrored
        from cds3d.sweep.storage import Storage

        todo = mirrored(todo, output, Storage(config.storage))
    done = {work.folder for work in todo if work.done}
    open_tasks = [task for task in tasks if task.folder not in done]
    _check_sources(open_tasks)
    report = Reporter(output, tasks, todo)
    report.write()
    log.info(
        "%d edits of %d source fields: %d of these %d runs are done; the table is %s",
        len(tasks), len({task.source for task in tasks}), len(done), len(todo), report.page,
    )  # fmt: skip
    _tell_replaced([task for task in tasks if task.folder in done])
    try:
        if len(done) < len(todo):
            with _engine(config, open_tasks, fixed, output) as run:
                _run(run, todo, report)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("states are kept: the same command goes on from here") from None
    finally:
        report.write()
    failed = [work for work in todo if work.failure]
    if failed:
        raise UserError(
            f"{len(failed)} of {len(todo)} runs failed, the first is {failed[0].folder}: {failed[0].failure}; the same "
            "command tries them again"
        )
    log.info("%s: %d edits done", output, len(tasks))
    return output


def _check(config: DictConfig) -> None:
    whole(config, "retries", "video_frames")
    whole(config, "threads_each", least=1)
    if config.jobs is not None:
        whole(config, "jobs", least=1)
    if config.engine not in ("pool", "ray"):
        raise UserError(f"engine={config.engine} is unknown; use pool or ray")
    for key in ("address", "storage"):
        if config.engine == "pool" and config[key] is not None:
            raise UserError(f"{key}={config[key]} is for engine=ray")


def _check_sources(tasks: list[Task]) -> None:
    """UserError where edits ask for another source field than the one that is there: each of them would fail alike."""
    for scene, extra, source in sorted({(task.scene, task.extra, task.source) for task in tasks}):
        if (source / "metrics.json").exists():
            take_over_source(scene_config(scene, *extra)[1], source)


def _tell_replaced(done: list[Task]) -> None:
    """Warn of edits whose source field has been trained again since: the table would compare edits of two fields.

    Runs in a store have not noted which field they were edited from: nothing is told of them.
    """
    sources = {task.source for task in done if (task.source / "field.safetensors").is_file()}
    now = {
        source: fingerprint(source) for source in sorted(sources)
    }  # each is read once: ten thousand edits may share it
    for source, field in now.items():
        old = [t.folder for t in done if t.source == source and edited_from(t.folder) not in (None, field)]
        if old:
            log.warning(
                "%s has been trained again since %d of the edits that are done, the first is %s: delete their folders "
                "to have them done with the field that is there now", source, len(old), old[0],
            )  # fmt: skip


@contextmanager
def _engine(config: DictConfig, tasks: list[Task], fixed: list[str], output: Path) -> Iterator:
    """Gives `run_pool` with what the configuration says of where and how many at a time."""
    from cds3d.sweep.memory import default_jobs, questions  # which needs PyTorch, and a sweep that is done does not

    if config.engine == "pool":
        jobs = config.jobs or default_jobs(tasks, fixed, config.threads_each)
        log.info("%d at a time", jobs)
        yield partial(run_pool, jobs=jobs, retries=config.retries)
        return
    _check_poses(tasks)
    from cds3d.sweep.cluster import Cluster

    cores = config.jobs * config.threads_each if config.jobs else usable_cores()
    cluster = Cluster(config.address, config.threads_each, cores, output, config.storage)
    try:
        cluster.reserve(questions(tasks, fixed), config.device)
        yield partial(run_pool, jobs=config.jobs or _HANDED_OVER, retries=config.retries, start=cluster.start)
    finally:
        cluster.close()


def _check_poses(tasks: list[Task]) -> None:
    """UserError for photos and videos without poses: each machine would estimate others."""
    for capture in {flag for task in tasks for flag in task.flags if flag.startswith("--capture=")}:
        path = Path(capture.removeprefix("--capture="))
        if path.is_file() or not has_poses(path):
            raise UserError(f"{path} has no poses: estimate them here first, with cds3d train --capture {path}")


def _run(run, todo: list[Work], report: Reporter) -> None:
    with tqdm(total=len(todo), initial=sum(w.done for w in todo), desc="sweep", unit="run") as bar:

        def changed(work: Work) -> None:
            if work.done or work.failure:
                bar.update()
            report.changed()

        run(todo, changed=changed, tick=report.tick)

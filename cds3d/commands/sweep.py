"""`cds3d sweep`: many edits, in one folder and one table."""

from __future__ import annotations

import logging
from pathlib import Path

from omegaconf import DictConfig
from tqdm import tqdm

from cds3d.options import whole
from cds3d.sweep.plan import plan
from cds3d.sweep.pool import default_jobs, run_pool, works
from cds3d.sweep.report import rows, write_report
from tensorf import locks
from tensorf.errors import UserError
from tensorf.files import is_partial

log = logging.getLogger("cds3d")


def sweep_command(config: DictConfig) -> Path:
    """Do what `config` (configs/sweep.yaml) says that is not done yet, and return the folder.

    UserError at the end if some edits failed; all others are done then, and the table tells which.
    """
    whole(config, "retries", "video_frames")
    whole(config, "threads_each", least=1)
    if config.jobs is not None:
        whole(config, "jobs", least=1)
    output = Path(config.output)
    ours = (output / "sweep.json").exists() or not output.exists()
    if not ours and not all(p.name == locks.NAME or is_partial(p) for p in output.iterdir()):
        raise UserError(f"{output} is no sweep's folder: give another output=")
    tasks = plan(config, output)
    fixed = [f"device={config.device}", f"threads={config.threads_each}"]
    todo = works(tasks, [*fixed, f"video_frames={config.video_frames}"], [*fixed, "video_frames=0"])
    jobs = config.jobs or default_jobs()
    output.mkdir(parents=True, exist_ok=True)
    locks.hold(output)
    write_report(output, rows(tasks, todo))
    log.info(
        "%d edits, %d of them done, %d at a time; the table is %s",
        len(tasks),
        _done(tasks),
        jobs,
        output / "index.html",
    )
    with tqdm(total=len(todo), initial=sum(w.done for w in todo), desc="sweep", unit="run") as bar:

        def changed(work) -> None:
            if work.done or work.failure:
                bar.update()
            write_report(output, rows(tasks, todo))

        try:
            run_pool(todo, jobs, config.retries, changed)
        except KeyboardInterrupt:
            raise KeyboardInterrupt("states are kept: the same command goes on from here") from None
        finally:
            write_report(output, rows(tasks, todo))
    failed = [work for work in todo if work.failure]
    if failed:
        raise UserError(
            f"{len(failed)} of {len(todo)} runs failed, the first is {failed[0].folder}: {failed[0].failure}; the same "
            "command tries them again"
        )
    log.info("%s: %d edits done", output, len(tasks))
    return output


def _done(tasks) -> int:
    return sum((task.folder / "metrics.json").exists() for task in tasks)

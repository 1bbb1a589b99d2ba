"""The loop around a training or an edit: progress bar, log, states as it goes, Ctrl-C, resume, `on_step`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

from tqdm import tqdm

from cds3d.interrupts import interrupts_between_steps
from cds3d.runs import RunFolder
from tensorf.errors import UserError, reason

log = logging.getLogger("cds3d")

# (iterations that are done, of so many, figures of the last one) -> whether to stop; None goes on.
OnStep = Callable[[int, int, dict[str, float]], bool | None]
_on_step: ContextVar[OnStep | None] = ContextVar("on_step", default=None)  # of the command that this thread is in


class Stopped(Exception):
    """`on_step` has ended a command. The state is kept: the same command with resume=true goes on from there."""


@contextmanager
def telling(on_step: OnStep | None) -> Iterator[None]:
    """Meanwhile `drive` calls `on_step` after each iteration of this thread's work; None: what it called before."""
    before = _on_step.set(on_step or _on_step.get())
    try:
        yield
    finally:
        _on_step.reset(before)


class Work(Protocol):
    """What can be driven: `tensorf.train.Trainer`, `Editor`, `PictureEdit`, `RedrawnShape`."""

    iteration: int

    def step(self) -> Any:
        """One iteration; what it returns goes to `each`."""

    def state_dict(self) -> dict: ...

    def load_state_dict(self, state: dict) -> None: ...


def drive(
    work: Work, iterations: int, run: RunFolder, *, save_every: int, label: str, each: Callable[[Any, tqdm, Any], None]
) -> float:
    """Run `work` to its last iteration, from the run's state if there is one; returns the seconds per iteration.

    The seconds of the earlier parts of a resumed run are included. each: called after every step with what it returned,
    the progress bar and the TensorBoard writer. The state is kept every `save_every` iterations, at the end, on Ctrl-C,
    and where something fails between two steps. When a step raises UserError the state stays the one that was kept
    before: numbers may have gone wrong since. UserError for a state that the work cannot take, and `Stopped` where a
    program's `on_step` ends it.
    """
    if (state := run.load_state()) is not None:
        try:
            work.load_state_dict(state)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RuntimeError) as error:
            if "memory" in str(error):  # of a GPU, which is not the state's fault
                raise
            message = f"{run.state_path} is damaged ({reason(error)}): start again with overwrite=true"
            raise UserError(message) from error
        run.went_on_from(work.iteration)
        log.info("resumed at iteration %d", work.iteration)
    writer, whole = run.logger(work.iteration), True
    try:
        with (
            tqdm(total=iterations, initial=work.iteration, desc=label, unit="step") as bar,
            interrupts_between_steps() as check,
        ):
            while work.iteration < iterations:
                whole = False
                result = work.step()
                whole = True
                bar.update()
                each(result, bar, writer)
                told = result if isinstance(result, dict) else {"psnr_db": result}  # trainings give it alone
                figures = {k: v for k, v in told.items() if isinstance(v, (int, float))}
                run.report(work.iteration, iterations, figures)
                if work.iteration % save_every == 0:
                    run.save_state(work.state_dict())
                if (on_step := _on_step.get()) is not None and on_step(work.iteration, iterations, figures):
                    raise Stopped(f"at iteration {work.iteration}; the state is kept: resume=true goes on")
                check()
    except KeyboardInterrupt:
        if not whole:  # pressed twice: parameters may have moved and the rest of the step not
            onward = "resume=true goes on from the state that was kept before it"
            if not run.state_path.exists():
                onward = "no state was kept yet: give the same command again"
            raise KeyboardInterrupt(f"within iteration {work.iteration + 1}; {onward}") from None
        run.save_state(work.state_dict())
        raise KeyboardInterrupt(
            f"at iteration {work.iteration}; the state is kept: the same command with resume=true goes on"
        ) from None
    except UserError:
        raise
    except Exception:  # `Stopped`, what `on_step` raises, or a pipe whose reader has gone
        if whole:
            run.save_state(work.state_dict())
        raise
    finally:
        writer.close()
    run.save_state(work.state_dict())
    return run.seconds / max(1, work.iteration)


@contextmanager
def after_the_last_iteration() -> Iterator[None]:
    """Around figures and videos, which are made once `drive` is done: what Ctrl-C says there."""
    try:
        yield
    except KeyboardInterrupt as stop:
        told = "after the last iteration, which is kept: the same command with resume=true makes figures and videos"
        raise KeyboardInterrupt(str(stop) or told) from None

"""What runs out first when 10,000 edits go to 100 GPUs: a simulation, from sizes and times that are measured here.

    python scripts/simulate_scale.py --run outputs/flower/a-red-flower     # any finished run of edit.py, for its sizes

Measured on this machine: the start of a process, reading pocket's weights, the captures that ship, and the run's
state and result. Assumed, as options: the seconds of an edit on a GPU, the size of a Stable Diffusion's weights, the
bandwidths. The simulation is of a cluster of machines with eight GPUs each: every edit starts a process, reads weights,
edits and puts its run into the store. Whatever travels at a time shares the store's bandwidth evenly; each machine has
a disk, which its GPUs share. Writes scale.json and scale.md into --output.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import random
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402

from cds3d.guidance import load_prior  # noqa: E402
from cds3d.options import data_folder  # noqa: E402
from tensorf.files import write_text  # noqa: E402
from tensorf.untrusted import load_json  # noqa: E402

_GB, _MB = 1e9, 1e6
_PER_MACHINE = 8
_SPREAD = (0.7, 1.3)  # of the seconds of edits, which differ: else all would come to the store at once for ever
_LIGHT = ("metrics.json", "views/00.png")  # what comes back to the sweep's own machine


class Scale(NamedTuple):
    """Bytes and bytes a second, seconds. weights_once: each machine keeps them on its disk, and sends for them once.

    table: of the head: seconds of writing a table of all edits; each: it is written after every edit.
    """

    edits: int
    gpus: int
    edits_a_gpu: int
    start_seconds: float
    edit_seconds: float
    weights: float
    source: float
    result: float
    states: float
    store_rate: float
    disk_rate: float
    table_seconds: float
    weights_once: bool = True
    table_each: bool = False


class Shared:
    """What several use at once, each with an equal share of `rate` bytes a second."""

    def __init__(self, rate: float):
        self.rate, self.busy = rate, 0.0
        self._at, self._served, self._jobs, self._count = 0.0, 0.0, [], 0  # served: bytes, of one that is always there

    def _advance(self, now: float) -> None:
        if self._jobs:
            self._served += (now - self._at) * self.rate / len(self._jobs)
            self.busy += now - self._at
        self._at = now

    def add(self, now: float, size: float, token) -> None:
        self._advance(now)
        self._count += 1
        heapq.heappush(self._jobs, (self._served + size, self._count, token))

    def next(self) -> float:
        """When the next one is through."""
        return self._at + (self._jobs[0][0] - self._served) * len(self._jobs) / self.rate if self._jobs else math.inf

    def pop(self):
        self._advance(self.next())
        return heapq.heappop(self._jobs)[2]


class Delays:
    """What takes its time whatever else there is."""

    def __init__(self):
        self._jobs, self._count = [], 0

    def add(self, now: float, seconds: float, token) -> None:
        self._count += 1
        heapq.heappush(self._jobs, (now + seconds, self._count, token))

    def next(self) -> float:
        return self._jobs[0][0] if self._jobs else math.inf

    def pop(self):
        return heapq.heappop(self._jobs)[2]


def simulate(scale: Scale) -> dict:
    """Hours until all is done and told, and the share of that for which each thing is busy. Event by event."""
    machines = -(-scale.gpus // _PER_MACHINE)
    delays, store, head = Delays(), Shared(scale.store_rate), Shared(1.0)
    disks = [Shared(scale.disk_rate) for _ in range(machines)]
    for_weights: list[list | None] = [[] for _ in range(machines)]  # who waits for them; None: they are there
    slots = scale.gpus * scale.edits_a_gpu
    waiting, now, chance = scale.edits, 0.0, random.Random(0)
    for number in range(min(slots, scale.edits)):
        waiting -= 1
        delays.add(now, scale.start_seconds, ("weights", number % machines))
    places = [delays, store, head, *disks]
    while (place := min(places, key=lambda p: p.next())).next() < math.inf:
        now = place.next()
        what, machine = place.pop()
        if what == "weights" and not scale.weights_once:
            store.add(now, scale.weights, ("source", machine))
        elif what == "weights" and for_weights[machine] is not None:
            if not for_weights[machine]:
                store.add(now, scale.weights, ("weights are here", machine))
            for_weights[machine].append(machine)
        elif what == "weights":
            disks[machine].add(now, scale.weights, ("source", machine))
        elif what == "weights are here":
            for _ in for_weights[machine]:
                disks[machine].add(now, scale.weights, ("source", machine))
            for_weights[machine] = None
        elif what == "source":
            store.add(now, scale.source, ("edit", machine))
        elif what == "edit":
            delays.add(now, scale.edit_seconds * chance.uniform(*_SPREAD), ("put", machine))
        elif what == "put":
            store.add(now, scale.result + scale.states, ("table", machine))
        elif what == "table" and scale.table_each:
            head.add(now, scale.table_seconds, ("end", machine))
        elif waiting:
            waiting -= 1
            delays.add(now, scale.start_seconds, ("weights", machine))
    return {
        "hours": now / 3600,
        "gpus_editing": scale.edits * scale.edit_seconds / slots / now,
        "store_busy": store.busy / now,
        "disks_busy": max(disk.busy for disk in disks) / now,
        "head_busy": head.busy / now,
    }


def edit_seconds(run: Path) -> float:
    """Those of a finished edit of a field. SystemExit for any other folder."""
    try:
        seconds = load_json(run / "metrics.json")["edit_seconds"]
    except (OSError, ValueError, TypeError, KeyError):
        seconds = None
    if seconds is None or not (run / "field.safetensors").exists():
        raise SystemExit(f"error: --run {run} has to be the folder of a finished edit of a scene")
    return seconds


def measured(run: Path) -> dict[str, float]:
    """CPU seconds, which other work on the machine does not change, and sizes of a finished run in 10^6 bytes."""
    edited = edit_seconds(run)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", "import cds3d.commands.edit"], check=True, cwd=Path(__file__).parents[1])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    begun = time.process_time()
    load_prior("pocket", device=torch.device("cpu"))
    pocket = time.process_time() - begun
    sizes = {p.relative_to(run).as_posix(): p.stat().st_size for p in run.rglob("*") if p.is_file()}
    captures = [
        sum(p.stat().st_size for p in scene.rglob("*") if p.is_file()) for scene in data_folder("scenes").iterdir()
    ]
    return {
        "process_start_cpu_seconds": round(start, 1),
        "pocket_weights_cpu_seconds": round(pocket, 2),
        "capture_mb": round(max(captures) / _MB, 2),
        "field_mb": round(sizes["field.safetensors"] / _MB, 2),
        "state_mb": round(sizes.get("state/state.pt", 0) / _MB, 2),
        "result_mb": round(sum(size for name, size in sizes.items() if not name.startswith("state/")) / _MB, 2),
        "light_mb": round(sum(sizes.get(name, 0) for name in _LIGHT) / _MB, 3),
        "edit_seconds_here": edited,
    }


def variants(base: Scale) -> dict[str, Scale]:
    short = base._replace(edit_seconds=10.0, states=0.0)
    return {
        "as it is": base,
        "weights over the network at each edit": base._replace(weights_once=False),
        "the table written after each edit": base._replace(table_each=True),
        "states every 5 s": base._replace(states=12 * base.states),
        "edits of 10 s": short,
        "edits of 10 s, weights over the network": short._replace(weights_once=False),
        "edits of 10 s, the table after each": short._replace(table_each=True),
        "a store of a tenth of the bandwidth": base._replace(store_rate=base.store_rate / 10),
        "four edits on a GPU, each as fast": base._replace(edits_a_gpu=4),
    }


def text(figures: dict, results: dict[str, dict]) -> str:
    lines = [f"measured here: {', '.join(f'{name} {value}' for name, value in figures.items())}", ""]
    lines += ["| simulated | hours | GPUs editing | store busy | disks busy | head busy |", "|---|---|---|---|---|---|"]
    for name, r in results.items():
        shares = " | ".join(f"{r[k]:.0%}" for k in ("gpus_editing", "store_busy", "disks_busy", "head_busy"))
        lines.append(f"| {name} | {r['hours']:.1f} | {shares} |")
    return "\n".join(lines) + "\n"


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="a finished run of edit.py")
    parser.add_argument("--edits", type=int, default=10_000)
    parser.add_argument("--gpus", type=int, default=100)
    parser.add_argument("--edit-seconds", type=float, default=120.0, help="of an edit on a GPU: assumed (120)")
    parser.add_argument("--weights-gb", type=float, default=2.1, help="of the prior: assumed, SD 1.x in fp16 (2.1)")
    parser.add_argument(
        "--store-gbs", type=float, default=1.25, help="GB/s of the store or shared folder: assumed (1.25)"
    )
    parser.add_argument("--disk-gbs", type=float, default=2.0, help="GB/s of a machine's disk: assumed (2)")
    parser.add_argument("--table-seconds", type=float, default=0.5, help="of a table: bench_sweep.py --sizes (0.5)")
    parser.add_argument("--output", type=Path, default=Path("outputs/bench/scale"))
    args = parser.parse_args(argv)
    figures = measured(args.run)
    base = Scale(
        edits=args.edits,
        gpus=args.gpus,
        edits_a_gpu=1,
        start_seconds=figures["process_start_cpu_seconds"],
        edit_seconds=args.edit_seconds,
        weights=args.weights_gb * _GB,
        source=figures["field_mb"] * _MB,
        result=figures["result_mb"] * _MB,
        states=args.edit_seconds // 60 * figures["state_mb"] * _MB,  # one a minute
        store_rate=args.store_gbs * _GB,
        disk_rate=args.disk_gbs * _GB,
        table_seconds=args.table_seconds,
    )
    results = {name: simulate(scale) for name, scale in variants(base).items()}
    totals = {
        "weights_at_each_edit_tb": base.edits * base.weights / 1e12,
        "results_gb": base.edits * figures["result_mb"] / 1e3,
        "light_gb": base.edits * figures["light_mb"] / 1e3,
    }
    written = {"measured": figures, "assumed": base._asdict(), "simulated": results, "totals": totals}
    write_text(args.output / "scale.json", json.dumps(written, indent=1) + "\n")
    told = text(figures, results) + "\n" + ", ".join(f"{name} {value:.1f}" for name, value in totals.items()) + "\n"
    write_text(args.output / "scale.md", told)
    print(told)


if __name__ == "__main__":
    main()

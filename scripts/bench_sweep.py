"""Sweeps of short edits: one after the other, in the pool, and on a Ray cluster on this machine; and killed workers.

    python scripts/bench_sweep.py                       # 40 edits each way; a quarter of an hour on two idle cores
    python scripts/bench_sweep.py --edits 8 --ways pool,ray
    python scripts/bench_sweep.py --ways kills          # on Ray, a worker killed at ten random moments
    python scripts/bench_sweep.py --sizes 10000         # no edits: the table and the head's memory at that size

Edits are of the shipped flower at 64 pixels, with a source that is trained once for all. Writes sweeps.json and
sweeps.md into --output, with wall-clock seconds and CPU seconds of all processes: on a machine that does other work,
too, only the latter can be compared. What is in sweeps.json already is kept and not measured again.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import resource
import shutil
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cds3d.cli import run_command, tell  # noqa: E402
from cds3d.options import load_config  # noqa: E402
from cds3d.sweep.plan import plan  # noqa: E402
from cds3d.sweep.pool import Work  # noqa: E402
from cds3d.sweep.ports import family  # noqa: E402
from cds3d.sweep.report import rows, write_report  # noqa: E402
from tensorf.files import write_text  # noqa: E402

WAYS = {
    "one": ("one after the other", ["jobs=1"]),
    "pool": ("pool, two at a time", ["jobs=2"]),
    "ray": ("Ray, two workers", ["jobs=2", "engine=ray"]),
    "kills": ("Ray, two workers, one killed ten times", ["jobs=2", "engine=ray", "retries=10"]),
}
_TINY = "scene.width=64 field.iterations=60 edit.width=64 edit.iterations=3 save_every=1"
_COLORS = ("red", "blue", "white", "purple", "orange")
_KILLS = 10


def options(edits: int, output: Path) -> list[str]:
    colors = _COLORS[: min(edits, len(_COLORS))]
    prompts = ",".join(f'"a {color} flower"' for color in colors)
    seeds = ",".join(str(seed) for seed in range(-(-edits // len(colors))))
    return [f"edits=[{prompts}]", f"seeds=[{seeds}]", f'options=["{_TINY}"]', "device=cpu", f"output={output}"]


class Processes:
    """CPU seconds of all processes below this one, also of those that end in between; kills workers if asked to.

    What a process does in its last tenth of a second may be missed.
    """

    def __init__(self, kills: int):
        self.killed: list[int] = []
        self._seconds: dict[tuple[int, int], float] = {}
        self._kills, self._stop = kills, threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Processes:
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def cpu_seconds(self) -> float:
        return sum(self._seconds.values())

    def _watch(self) -> None:
        chance, due = random.Random(0), time.monotonic() + 10
        while not self._stop.wait(0.1):
            workers = self._look()
            if len(self.killed) < self._kills and workers and time.monotonic() > due:
                os.kill(chance.choice(workers), signal.SIGKILL)
                self.killed.append(1)
                due = time.monotonic() + chance.uniform(1, 8)

    def _look(self) -> list[int]:
        """Count, and return Ray's workers that are at work."""
        workers = []
        for pid in family(os.getpid())[1:]:
            try:
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                if b"_do_on_node" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    workers.append(pid)
            except OSError:
                continue
            self._seconds[pid, int(fields[19])] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return workers


def measure(way: str, edits: int, output: Path) -> dict:
    folder = output / way
    shutil.rmtree(folder, ignore_errors=True)
    before, own = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    with Processes(_KILLS if way == "kills" else 0) as processes:
        code = run_command("sweep", [*options(edits, folder), *WAYS[way][1]])
    if code == 130:  # Ctrl-C
        raise SystemExit(code)
    seconds = time.perf_counter() - before
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = processes.cpu_seconds + after.ru_utime + after.ru_stime - own.ru_utime - own.ru_stime
    table = [row | {"run": str(folder / row["run"])} for row in json.loads((folder / "sweep.json").read_text())]
    right = [row for row in table if row["state"] == "done" and _iterations(row) == 3]
    return {
        "exit_code": code,
        "edits": len(table),
        "right": len(right),
        "same_as_ray": sum(_same(row, output) for row in right),  # where that way was measured before
        "attempts": sum(row["attempts"] for row in table),
        "killed": len(processes.killed),
        "wall_seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
        "edit_seconds": round(sum(row["edit_seconds"] for row in right) / max(1, len(right)), 2),
        "load_average": round(os.getloadavg()[0], 1),
        "cores": os.cpu_count(),
    }


def _iterations(row: dict) -> int:
    return json.loads((Path(row["run"]) / "metrics.json").read_text())["iterations"]


def _same(row: dict, output: Path) -> bool:
    """Whether the run's field is that of the way `ray`, byte for byte."""
    field = Path(row["run"]) / "field.safetensors"
    other = output / "ray" / "runs" / field.parent.name / field.name
    return other.exists() and other.read_bytes() == field.read_bytes()


def sizes(count: int, output: Path) -> dict:
    """Of a sweep of `count` edits: CPU seconds of planning and of one table, and bytes of its files; head's memory."""
    config = load_config("sweep", [])
    config.edits, config.seeds = ["a red flower", "a blue flower"], [*range(-(-count // 2))]
    begun = time.process_time()
    tasks = plan(config, output)
    planned = time.process_time() - begun
    figures = {"edit_gain_db": 12.3456, "kept_psnr_db": 34.5678, "accuracy": 1.0, "edit_seconds": 123.4}
    works = [replace(Work("edit", task.flags, task.folder), figures=figures) for task in tasks]
    begun = time.process_time()
    table = rows(tasks, works)
    write_report(output / "table", table)
    written = time.process_time() - begun
    files = {name: (output / "table" / name).stat().st_size for name in ("sweep.json", "sweep.csv", "index.html")}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return {
        "edits": len(tasks),
        "plan_seconds": round(planned, 2),
        "table_seconds": round(written, 2),
        "resume_seconds": round(_resumed(works, output / "done"), 2),
        "bytes": files,
        "peak_memory_mb": round(peak),
    }


def _resumed(works: list[Work], folder: Path) -> float:
    """CPU seconds of finding out that all runs are finished."""
    fresh = [Work("edit", (), folder / work.folder.name) for work in works]
    for work, before in zip(fresh, works):
        work.folder.mkdir(parents=True)
        (work.folder / "metrics.json").write_text(json.dumps(before.figures))
    begun = time.process_time()
    found = sum(work.done for work in fresh)
    seconds = time.process_time() - begun
    shutil.rmtree(folder)
    assert found == len(works)
    return seconds


def waiting(count: int) -> dict:
    """Of `count` edits that wait at a Ray cluster: seconds of handing them over, memory that they take."""
    from cds3d.sweep.cluster import Cluster

    cluster = Cluster(None, 1, 1, Path.cwd())
    cluster.reserve([], "cpu")
    before, begun = _resident(), time.perf_counter()
    calls = [cluster.call(time.sleep, 3600) for _ in range(count)]
    seconds = time.perf_counter() - begun
    time.sleep(5)
    after, begun = _resident(), time.perf_counter()
    assert all(call.running for call in calls)
    asked = time.perf_counter() - begun
    cluster.close()
    grown = {name: round(after[name] - before.get(name, 0)) for name in after}
    return {"seconds": round(seconds, 1), "look_seconds": round(asked, 3), "grown_mb": grown}


def _resident() -> dict[str, float]:
    """MB in use, of this process and of Ray's, by program."""
    used = {}
    for pid in family(os.getpid()):
        name = "this process" if pid == os.getpid() else Path(f"/proc/{pid}/comm").read_text().strip()
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        used[name] = used.get(name, 0) + pages * resource.getpagesize() / 2**20
    return {name: mb for name, mb in used.items() if name in ("this process", "raylet", "gcs_server")}


def text(results: dict) -> str:
    lines = [
        "| way | edits right | attempts | killed | wall, s | CPU, s | CPU an edit, s | load |",
        "|---|" + "---|" * 7,
    ]
    for way, (told, _) in WAYS.items():
        if way in results:
            r = results[way]
            counts = f"{r['right']} of {r['edits']} | {r['attempts']} | {r['killed']}"
            times = f"{r['wall_seconds']:.0f} | {r['cpu_seconds']:.0f} | {r['cpu_seconds'] / r['edits']:.1f}"
            lines.append(f"| {told} | {counts} | {times} | {r['load_average']} |")
    for count, r in results.get("sizes", {}).items():
        told = ", ".join(f"{name} {size / 2**20:.1f} MB" for name, size in r["bytes"].items())
        line = f"{count} edits, CPU seconds: {r['plan_seconds']} to plan them, {r['resume_seconds']} to find all done, "
        line += f"{r['table_seconds']} for a table: {told}; this process has {r['peak_memory_mb']} MB"
        if (w := r.get("waiting_on_ray")) is not None:
            grown = ", ".join(f"{name} {mb} MB" for name, mb in w["grown_mb"].items())
            line += f"; handed to Ray in {w['seconds']} s, where they take {grown}"
        lines += ["", line]
    return "\n".join(lines) + "\n"


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edits", type=int, default=40)
    parser.add_argument("--ways", type=lambda text: text.split(","), default=[*WAYS], help=",".join(WAYS))
    parser.add_argument("--sizes", type=lambda text: [int(n) for n in text.split(",")], help="as in 100,1000,10000")
    parser.add_argument("--output", type=Path, default=Path("outputs/bench/sweeps"))
    args = parser.parse_args(argv)
    if unknown := set(args.ways) - {*WAYS}:
        parser.error(f"--ways {unknown.pop()} is unknown: use {','.join(WAYS)}")
    tell()
    args.output.mkdir(parents=True, exist_ok=True)
    os.chdir(args.output)  # the source is one of its own
    args.output = Path.cwd()
    path = args.output / "sweeps.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    for count in args.sizes or []:
        results.setdefault("sizes", {})[str(count)] = sizes(count, args.output)
        if importlib.util.find_spec("ray"):
            results["sizes"][str(count)]["waiting_on_ray"] = waiting(count)
    if args.sizes is None:
        first = ["scene=flower", *_TINY.split()[:2], "threads=1", "video_frames=0", "device=cpu"]
        if not Path("outputs/flower/source/metrics.json").exists() and run_command("train", first):
            raise SystemExit(1)
    for way in args.ways if args.sizes is None else []:
        if way not in results:
            results[way] = measure(way, args.edits, args.output)
        write_text(path, json.dumps(results, indent=1) + "\n")
        write_text(args.output / "sweeps.md", text(results))
    write_text(path, json.dumps(results, indent=1) + "\n")
    write_text(args.output / "sweeps.md", text(results))
    print(text(results))


if __name__ == "__main__":
    main()

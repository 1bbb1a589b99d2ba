"""Runs on a Ray cluster: connecting, what each run takes of a node, and starting it there.

Ray decides which node does what. Which runs are tried again is decided in pool.py, for all ways of running alike, so
Ray's own retries are off.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import cds3d
from cds3d.jobs import NICE
from cds3d.sweep.calls import Call
from cds3d.sweep.memory import Forecast, forecast
from cds3d.sweep.node import Order, do, enter, source_folder_of, write_light
from cds3d.sweep.pool import Work
from cds3d.sweep.ports import is_loopback, open_ports
from cds3d.sweep.shipping import ship
from tensorf.errors import UserError, reason

log = logging.getLogger("cds3d")

_INSTALL = 'in a checkout, pip install ".[ray]"'
_OBJECT_STORE = 128 * 2**20  # bytes, of a local Ray, through which next to nothing goes


class Cluster:
    """A connection to Ray, closed by `close`. address: of a cluster; None starts a Ray for this process alone.

    threads: CPU threads of each run. cpus: of a Ray that is started. output, storage: as of `cds3d sweep`.
    """

    def __init__(self, address: str | None, threads: int, cpus: int, output: Path, storage: str | None = None):
        self._ray = _connect(address, cpus)
        self.output, self.storage, self._threads = output, storage, threads
        self._resources: dict[str, float] = {"num_cpus": threads}
        self._put = None if address is None else self._ray.put
        self._inputs: dict = {}
        place = f"{Path.cwd()}\0{output}\0{storage}"
        self._sweep = hashlib.sha256(place.encode()).hexdigest()[:12]
        most = max(node["Resources"].get("CPU", 0) for node in self._nodes())
        if threads > most:
            self.close()
            raise UserError(f"threads_each={threads}: no node of the cluster has more than {most:.0f} CPUs")
        Path("outputs").mkdir(exist_ok=True)

    def close(self) -> None:
        self._ray.shutdown()

    def _nodes(self) -> list[dict]:
        return [node for node in self._ray.nodes() if node["Alive"]]

    def reserve(self, questions: Sequence[Sequence[str]], device: str) -> None:
        """Ask a node what the largest of some edits needs, and let each take that much of a node from now on.

        questions: flags and options of each such edit. Without any, each takes a whole GPU, where there are GPUs.
        UserError if device= asks for one in vain.
        """
        if device.startswith("cuda:") and device != "cuda:0":
            raise UserError(f"device={device}: Ray shows each run its own GPU alone and chooses which: use device=cuda")
        gpus = [node for node in self._nodes() if node["Resources"].get("GPU")]
        if device.startswith("cuda") and not gpus:
            raise UserError(f"device={device}: no node of the cluster has a GPU")
        on_gpu = bool(gpus) and device != "cpu"
        shipped = [ship(flags, self._put, self._inputs) for flags in questions]
        order = self._order("forecast", [], "forecast")
        task = self._ray.remote(_forecast_on_node).options(num_cpus=1, num_gpus=int(on_gpu), max_retries=3)
        try:
            told: Forecast | str | None = self._ray.get(task.remote(order, shipped))
        except self._ray.exceptions.RayError as error:  # the last line of a page names the cause
            why = str(error).strip().splitlines()[-1].strip()
            raise UserError(f"a node of the cluster cannot run cds3d ({why}): there, {_INSTALL}") from error
        if not isinstance(told, Forecast):
            if told is not None:
                log.info("what an edit needs could not be told beforehand (%s): only CPUs and GPUs are counted", told)
            self._resources["num_gpus"] = int(on_gpu)
            return
        largest_mb = max(node["Resources"].get("memory", 0) for node in self._nodes()) / 2**20
        gpu_mb = min(self._gpu_mb(node) for node in gpus) if on_gpu else None
        self._resources = resources(self._threads, told.edit_mb, gpu_mb, largest_mb)
        log.info("an edit is expected to need %.1f GB: each takes %s", told.edit_mb / 1024, self._resources)

    def _gpu_mb(self, node: dict) -> float:
        strategy = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        task = self._ray.remote(_gpu_memory_mb).options(num_cpus=0, num_gpus=0.01, scheduling_strategy=strategy)
        return self._ray.get(task.remote())

    def start(self, work: Work) -> Call:
        """Hand a run of a sweep to the cluster."""
        flags = ship([f for f in work.flags if not f.startswith("output=")], self._put, self._inputs)
        name = name_of(work)
        folder = str(work.folder.absolute())
        if self.storage is not None:
            folder = name if work.command == "edit" else str(source_folder_of(name))
        order = self._order(work.command, flags, folder, name, work.after and f"sources/{work.after.name}")
        return self._call(partial(_taken, work), _do_on_node, order)

    def call(self, function: Callable, *arguments) -> Call:
        """function(*arguments) on a node, in this process's folder, which all nodes have to share."""
        return self._call(str, _call_on_node, str(Path.cwd()), self._threads, function, arguments)

    def _call(self, read: Callable, function: Callable, *arguments) -> Call:
        task = self._ray.remote(function).options(**self._resources, max_retries=0)
        reference = task.remote(*arguments)
        errors = self._ray.exceptions
        lost = (errors.WorkerCrashedError, errors.NodeDiedError, errors.LocalRayletDiedError, errors.ObjectLostError)
        lost += (errors.OutOfMemoryError,)
        return Call(reference.future(), partial(self._ray.cancel, reference), lost, read)

    def _order(self, command: str, flags: list[str], folder: str, name: str = "", source: str | None = None) -> Order:
        asked = command == "forecast"  # of all edits, which together read everything
        used = tuple(given for given in self._inputs.values() if asked or any(given.name in flag for flag in flags))
        shared = None if self.storage else str(Path.cwd())
        storage = self.storage and str(_absolute(self.storage))
        return Order(
            cds3d.__version__, self._sweep, command, tuple(flags), folder, used, shared, storage, name,
            source if self.storage else None,
        )  # fmt: skip


def name_of(work: Work) -> str:
    """A run's name in a storage."""
    return f"{'runs' if work.command == 'edit' else 'sources'}/{work.folder.name}"


def _absolute(storage: str) -> str:
    """Nodes have other working folders."""
    return storage if "://" in storage else os.path.abspath(storage)


def resources(threads: int, edit_mb: float, gpu_mb: float | None, node_mb: float) -> dict[str, float]:
    """What Ray is to set aside for an edit that needs `edit_mb`.

    gpu_mb: memory of the smallest GPU, None without GPUs: an edit takes that share of one, in hundredths. node_mb: of
    the largest node, which is as much as an edit may ask for: Ray would wait for ever for a larger one.
    """
    if gpu_mb is not None:
        return {"num_cpus": threads, "num_gpus": min(1.0, math.ceil(100 * edit_mb / gpu_mb) / 100)}
    return {"num_cpus": threads, "memory": int(min(edit_mb, node_mb) * 2**20)}


def _connect(address: str | None, cpus: int):
    """The module ray, connected. UserError if it is not installed, or the cluster cannot be reached."""
    if address is None:  # before ray is imported
        # The name misleads: with 0, Ray binds all its ports to the loopback address, as it does on macOS and Windows.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it tells nobody what is done here
        os.environ.setdefault("RAY_worker_niceness", str(NICE))  # 15 else, which starves on a busy machine
    try:
        import ray
        import ray.util.scheduling_strategies
    except ImportError:
        raise UserError(f"engine=ray needs Ray: {_INSTALL}") from None
    if address is not None and address.startswith("ray://"):
        raise UserError(f"address={address}: give the command on a machine of the cluster, with address=auto")
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    root = str(Path(cds3d.__file__).resolve().parents[1])
    path = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH")) if p)
    try:
        if address is not None:
            ray.init(address=address, **quiet)
            return ray
        ray.init(
            num_cpus=cpus,
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE,
            runtime_env={"env_vars": {"PYTHONPATH": path}},
            **quiet,
        )
    except (OSError, ValueError, RuntimeError, AssertionError) as error:
        raise UserError(f"address={address}: Ray cannot be reached or started there ({reason(error)})") from error
    for warning in open_to_others(os.getpid()):
        log.warning("%s", warning)
    return ray


def open_to_others(process: int) -> list[str]:
    """A warning for each port of a process and its children that other machines can reach."""
    return [
        f"{port.program} listens at {port.address}, port {port.number}, which other machines may reach: whoever is let "
        "in there can run programs as you; close the port by a firewall"
        for port in open_ports(process)
        if not is_loopback(port.address)
    ]


def _taken(work: Work, result: tuple[str, dict[str, bytes]]) -> str:
    outcome, files = result
    write_light(work.folder, files)
    return outcome


def _do_on_node(order: Order) -> tuple[str, dict[str, bytes]]:
    import ray

    return do(order, ray.get)


def _call_on_node(folder: str, threads: int, function: Callable, arguments: tuple) -> str:
    import torch

    try:
        os.chdir(folder)
        torch.set_num_threads(threads)
        function(*arguments)
        return "done"
    except Exception as error:  # told in one line; what Ray would make of it is a page
        return reason(error)


def _forecast_on_node(order: Order, questions: Sequence[Sequence[str]]) -> Forecast | str | None:
    import ray

    try:
        enter(order, ray.get)
        return forecast(questions) if questions else None
    except Exception as error:  # of any kind of model: the runs themselves will tell
        return reason(error)


def _gpu_memory_mb() -> float:
    import torch

    return torch.cuda.get_device_properties(0).total_memory / 2**20

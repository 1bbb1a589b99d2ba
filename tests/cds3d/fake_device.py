"""CPU tensors that say they are on another device, and refuse to mix with those that are not.

`Elsewhere` holds a CPU tensor and reports the device "meta", which stands for a GPU, so that code that asks
`device.type == "cpu"` takes its other branch. Within `elsewhere()` every operator is run on what is held, and its
results are wrapped again; mixing with plain tensors raises as CUDA would. Indexing with a Python list, x[[0, 2]], makes
indices without values here: on a GPU it copies the list there each time, so that nothing that runs often should do it.

`Counter` counts what makes a CPU wait for a GPU, as CUDA does it: numbers and lists of indices whose length the CPU has
to know, and copies between the two that are not told to be non-blocking.
"""

from __future__ import annotations

import collections
import importlib
import sys
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = torch.device("meta")
# Operators that may take tensors of both: copies, indexing with CPU indices, and numbers.
_MIXED = ("copy_", "_to_copy", "index", "index_put_", "_index_put_impl_", "set_")
_ROOT = Path(__file__).resolve().parents[2]
_OURS = (f"{_ROOT}/cds3d/", f"{_ROOT}/tensorf/")
_OTHER = "Expected all tensors to be on the same device"


class Elsewhere(torch.Tensor):
    """held: the CPU tensor."""

    @staticmethod
    def __new__(cls, held: torch.Tensor, requires_grad: bool = False):
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
            requires_grad=requires_grad,
        )
        made.held = held
        return made

    def __repr__(self):
        return f"Elsewhere({self.held!r})"

    def __deepcopy__(self, memo):
        made = Elsewhere(self.held.detach().clone(), self.requires_grad)
        if isinstance(self, torch.nn.Parameter):
            made = torch.nn.Parameter(made, self.requires_grad)
        memo[id(self)] = made
        return made

    def numpy(self, *args, **kwargs):
        raise TypeError("can't convert a tensor of another device to numpy: use .cpu() first")

    __array__ = numpy

    def tolist(self):
        Counter.count("tolist", 1)
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


def _plain(x: torch.Tensor) -> bool:
    return isinstance(x, torch.Tensor) and not isinstance(x, Elsewhere)


def _run(func, args, kwargs):
    name = func.overloadpacket.__name__
    tensors = _tensors((args, kwargs), [])
    there = [t for t in tensors if isinstance(t, Elsewhere)]
    target = kwargs.get("device")
    if there and name not in _MIXED and any(_plain(t) and t.dim() > 0 for t in tensors):
        raise RuntimeError(f"{_OTHER}: {func}")
    if name in ("index", "index_put_", "_index_put_impl_") and _plain(args[0]):
        indices = [i for i in args[1] if isinstance(i, torch.Tensor)]
        if any(isinstance(i, Elsewhere) for i in indices):
            raise RuntimeError(f"indices should be on the CPU: {func}")
    Counter.count(name, _waits(name, args, kwargs, bool(there)))
    if target is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    moved = bool(there) if target is None else torch.device(target).type == DEVICE.type
    if name in ("copy_", "set_", "index_put_", "_index_put_impl_"):
        moved = isinstance(args[0], Elsewhere)
    if there:
        args, kwargs = _mapped(_held, args), _mapped(_held, kwargs)
    if name == "grid_sampler_2d_backward":  # its CPU kernel wants what the CUDA kernel does not
        args = [a.contiguous() if isinstance(a, torch.Tensor) else a for a in args]
    result = func(*args, **kwargs)
    if name.endswith("_") and not name.startswith("_") and there and isinstance(result, torch.Tensor):
        return tensors[0]  # in place: the tensor itself
    return _mapped(_wrapped, result) if moved else result


def _tensors(value, found: list) -> list:
    """found, and the tensors in nested arguments. (torch's pytree does the same, several times as slowly.)"""
    if isinstance(value, torch.Tensor):
        found.append(value)
    elif isinstance(value, (tuple, list)):
        for part in value:
            _tensors(part, found)
    elif isinstance(value, dict):
        _tensors(list(value.values()), found)
    return found


def _mapped(function, value):
    """value with each tensor in it, however nested, as the function returns it."""
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, (tuple, list)):
        return type(value)([_mapped(function, part) for part in value])
    if isinstance(value, dict):
        return {key: _mapped(function, part) for key, part in value.items()}
    return value


def _held(tensor):
    return tensor.held if isinstance(tensor, Elsewhere) else tensor


def _wrapped(tensor):
    return tensor if isinstance(tensor, Elsewhere) else Elsewhere(tensor)


# Operators after which a GPU is waited for, and how often.
_WAITS = {"_local_scalar_dense": 1, "nonzero": 1, "masked_select": 1, "_unique2": 1, "equal": 1, "bincount": 2}
_WAITS |= {"_linalg_check_errors": 1}


def _waits(name: str, args: tuple, kwargs: dict, there: bool) -> int:
    """How often an operator makes the CPU wait for a GPU. there: it has an argument there."""
    if name == "_to_copy":
        leaves = isinstance(args[0], Elsewhere)
        arrives = torch.device(kwargs.get("device") or args[0].device).type == DEVICE.type
        return int(leaves != arrives and not (arrives and kwargs.get("non_blocking")))
    if name == "copy_":
        to, of = (isinstance(a, Elsewhere) for a in args[:2])
        return int(to != of and not (to and (args[2:] or [kwargs.get("non_blocking")])[0]))
    if not there:
        return 0
    if name in ("index", "index_put_", "_index_put_impl_"):
        indices = [i for i in args[1] if isinstance(i, torch.Tensor)]
        if name != "index" and args[2].numel() == 1 and len(indices) == 1 and indices[0].dtype == torch.bool:
            return 0  # filled through the mask
        return sum(_plain(i) or i.dtype == torch.bool for i in indices)
    if name == "repeat_interleave":
        return int(kwargs.get("output_size") is None)
    return _WAITS.get(name, 0)


class Counter:
    """synchronisations: so far; places: how many in which line of which file, by which operator."""

    synchronisations = 0
    places: collections.Counter = collections.Counter()

    @classmethod
    def count(cls, name: str, number: int) -> None:
        if number:
            cls.synchronisations += number
            frame = sys._getframe(2)
            while frame.f_back and not frame.f_code.co_filename.startswith(_OURS):
                frame = frame.f_back
            file = Path(frame.f_code.co_filename)
            cls.places[f"{file.parent.name}/{file.name}:{frame.f_lineno} {name}"] += number

    @classmethod
    def reset(cls) -> None:
        cls.synchronisations, cls.places = 0, collections.Counter()


class _Mode(TorchDispatchMode):
    """For operators without a wrapped tensor among their arguments, such as torch.zeros(device=...)."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


_active: list[_Mode] = []


def enter() -> None:
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    _active.append(_Mode())
    _active[-1].__enter__()


def leave() -> None:
    """End it early: from here on everything is on the CPU again."""
    torch.__future__.set_overwrite_module_params_on_conversion(False)
    while _active:
        _active.pop().__exit__(None, None, None)


@contextmanager
def elsewhere(monkeypatch):
    """Everything that `device` sends there is wrapped."""
    Counter.reset()
    for module in ("torch.optim.optimizer", "torch.utils._foreach_utils"):
        for kind in ("fused", "foreach"):
            name = f"_get_{kind}_kernels_supported_devices"
            monkeypatch.setattr(importlib.import_module(module), name, lambda: ["meta", "cpu"])
    tensor = torch.tensor

    def made(*args, device=None, **kwargs):  # torch.tensor does not ask the dispatcher
        there = device is not None and torch.device(device).type == DEVICE.type
        plain = tensor(*args, device="cpu" if there else device, **kwargs)
        return plain.to(DEVICE) if there else plain

    monkeypatch.setattr(torch, "tensor", made)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    enter()
    try:
        yield
    finally:
        leave()

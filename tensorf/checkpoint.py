"""Fields in safetensors files: tensors in the body, all geometry and settings as JSON in the header."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from tensorf.errors import UserError, is_out_of_memory, reason
from tensorf.field import Field, FieldConfig
from tensorf.files import atomic
from tensorf.local import LocalField
from tensorf.official.field import OfficialConfig, OfficialField
from tensorf.official.space import OfficialSpace
from tensorf.space import SPACES, Space

KIND, LOCAL, OFFICIAL = "tensorf", "local", "official"
_CLASSES = {KIND: (Field, FieldConfig, Space), OFFICIAL: (OfficialField, OfficialConfig, OfficialSpace)}
_SHAPES = {"box": (2, 3), "reference": (3, 4), "stretch": (2,)}  # of a space's tensors
_MOST_STEPS = 100_000  # samples along a ray; TensoRF's largest fields have about 2,000
FORMAT = "cds3d-field-2"  # 1 had no diffuse colour in its decoder


def save_field(field: Field | LocalField, path: str | Path) -> None:
    """Write atomically: a stopped save leaves the old file or none. Parts that show nowhere are left out."""
    field = field.pruned() if isinstance(field, LocalField) else field
    tensors = {k: v.detach().cpu().contiguous() for k, v in field.state_dict().items()}
    tensors = {k: v.to(torch.uint8) if v.dtype == torch.bool else v for k, v in tensors.items()}
    with atomic(Path(path)) as partial:
        metadata = {"format": FORMAT, "kind": _kind(field), "field": json.dumps(_header(field))}
        partial.write_bytes(_sorted(save(tensors, metadata)))


def _kind(field: Field | LocalField) -> str:
    return LOCAL if isinstance(field, LocalField) else OFFICIAL if isinstance(field, OfficialField) else KIND


def _header(field: Field | LocalField) -> dict:
    if isinstance(field, LocalField):
        return {"source": _header(field.source), "target": _header(field.target)}
    space = {name: getattr(field.space, name) for name in field.space.__dataclass_fields__}
    return {
        "kind": _kind(field),
        "config": asdict(field.config),
        "resolution": list(field.resolution),
        "steps": field.steps,
        "space": {name: value.tolist() if isinstance(value, torch.Tensor) else value for name, value in space.items()},
    }


def _sorted(file: bytes) -> bytes:
    """`file` with its header sorted: safetensors orders metadata by chance, and equal fields should be equal bytes."""
    length = int.from_bytes(file[:8], "little")
    header = json.dumps(json.loads(file[8 : 8 + length]), sort_keys=True).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + file[8 + length :]


def read_kind(path: Path) -> str:
    """The field's kind from the file's header. Files that name none count as "tensorf": its loader says what is wrong.

    UserError if there is no file.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist: train the field, or finish its run, first")
    try:
        with safe_open(path, "pt", device="cpu") as file:
            return (file.metadata() or {}).get("kind", KIND)
    except (SafetensorError, OSError):
        return KIND


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> Field | LocalField:
    """Read what `save_field` wrote. UserError if the file is missing, damaged or something else."""
    try:
        with safe_open(path, "pt", device="cpu") as file:
            metadata = file.metadata() or {}
            if str(metadata.get("format")).startswith("cds3d-field-") and metadata["format"] != FORMAT:
                raise UserError(f"{path} was written by another version of this program: train the field again")
            if metadata.get("format") != FORMAT:
                raise UserError(f"{path} is a safetensors file but holds no radiance field")
            header = json.loads(metadata["field"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        tensors = {k: v.bool() if v.dtype == torch.uint8 else v for k, v in tensors.items()}
        field = _build(header, tensors)
        field.load_state_dict(tensors)
    except FileNotFoundError as error:
        raise UserError(f"{path} is not there: train the field first") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({reason(error)})") from error
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        raise UserError(f"{path} is damaged, or no field ({reason(error)}): train it again") from error
    return field.to(device)


def _build(header: dict, tensors: dict[str, torch.Tensor], prefix: str = "") -> Field | LocalField:
    """An untrained field of the sizes in the header. Occupancy and region take their shapes from the tensors."""
    if "source" in header:
        parts = [_build(header[name], tensors, f"{prefix}{name}.") for name in ("source", "target")]
        return LocalField(parts[0], torch.zeros_like(_cells(prefix + "region", tensors)), parts[1])
    config = {k: tuple(v) if isinstance(v, list) else v for k, v in header["config"].items()}
    geometry = {name: _checked(name, value) for name, value in header["space"].items()}
    kind, config_kind, space_kind = _CLASSES[header.get("kind", KIND)]  # older files' fields are all of one kind
    for numeric in (f.name for f in fields(config_kind) if f.type == "float"):
        _checked_number(f"config.{numeric}", config[numeric])
    config, space = config_kind(**config), space_kind(**geometry)
    resolution, steps = tuple(header["resolution"]), header["steps"]
    own = {k.removeprefix(prefix): v for k, v in tensors.items()}
    if type(steps) is not int or not 1 <= steps <= _MOST_STEPS:
        raise ValueError(f"steps={steps} has to be a whole number in 1 to {_MOST_STEPS}")
    _check_sizes(lambda like: kind(like, space, resolution, 1), config, own)
    field = kind(config, space, resolution, steps)
    field.occupancy = torch.zeros_like(_cells(prefix + "occupancy", tensors))
    return field


def _cells(name: str, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """A tensor of cells. ValueError if it is no (z, y, x) bool: compiled loops look into it without asking again."""
    cells = tensors[name]
    if cells.dtype != torch.bool or cells.dim() != 3 or 0 in cells.shape:
        raise ValueError(f"{name} has to be three-dimensional and bool, not {cells.dtype} of {list(cells.shape)}")
    return cells


def _checked(name: str, value):
    """One entry of a space's geometry, checked. ValueError if rays cannot be cast with it."""
    if name == "kind":
        if value not in SPACES:
            raise ValueError(f"space.kind={value!r} is unknown")
        return value
    if name not in _SHAPES:
        return _checked_number(f"space.{name}", value)
    tensor = torch.tensor(value, dtype=torch.float32)
    if tensor.shape != _SHAPES[name] or not torch.isfinite(tensor).all():
        raise ValueError(f"space.{name} has to be {list(_SHAPES[name])} finite numbers")
    if name == "box" and not (tensor[0] < tensor[1]).all():
        raise ValueError("space.box has no size")
    return tensor


def _checked_number(name: str, value) -> float:
    """A number from the header. ValueError if it is none, OverflowError if it is too large for any computation."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
        raise ValueError(f"{name}={value!r} has to be a number")
    return float(value)


def _check_sizes(make: Callable[..., Field], config, tensors: dict[str, torch.Tensor]) -> None:
    """ValueError unless each tensor has the size that the header implies: a forged one could ask for all memory.

    make: a field of a configuration. tinycudann's decoder is left out: it needs a GPU to be made.
    """
    fused = getattr(config, "decoder", "mlp") != "mlp"
    with torch.device("meta"):
        expected = make(replace(config, decoder="mlp") if fused else config).state_dict()
    for name, tensor in expected.items():
        exempt = name == "occupancy" or (fused and name.startswith("decoder."))
        if not exempt and tensors[name].shape != tensor.shape:
            raise ValueError(f"its header says {list(tensor.shape)} for {name} of {list(tensors[name].shape)}")

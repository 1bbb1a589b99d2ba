"""Fields in safetensors files: tensors in the body, all geometry and settings as JSON in the header."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from tensorf.errors import UserError, reason
from tensorf.field import Field, FieldConfig
from tensorf.files import atomic
from tensorf.local import LocalField
from tensorf.space import Space

KIND, LOCAL = "tensorf", "local"
_MOST_STEPS = 100_000  # samples along a ray; TensoRF's largest fields have about 2,000
FORMAT = "cds3d-field-2"  # 1 had no diffuse colour in its decoder


def save_field(field: Field | LocalField, path: Path) -> None:
    """Write atomically: a stopped save leaves the old file or none."""
    tensors = {k: v.detach().cpu().contiguous() for k, v in field.state_dict().items()}
    tensors = {k: v.to(torch.uint8) if v.dtype == torch.bool else v for k, v in tensors.items()}
    kind = LOCAL if isinstance(field, LocalField) else KIND
    with atomic(path) as partial:
        metadata = {"format": FORMAT, "kind": kind, "field": json.dumps(_header(field))}
        partial.write_bytes(_sorted(save(tensors, metadata)))


def _header(field: Field | LocalField) -> dict:
    if isinstance(field, LocalField):
        return {"source": _header(field.source), "target": _header(field.target)}
    space = field.space
    return {
        "config": asdict(field.config),
        "resolution": list(field.resolution),
        "steps": field.steps,
        "space": {
            "kind": space.kind,
            "box": space.box.tolist(),
            "near": space.near,
            "far": space.far,
            "reference": space.reference.tolist(),
            "background": space.background,
        },
    }


def _sorted(file: bytes) -> bytes:
    """`file` with its header sorted: safetensors orders metadata by chance, and equal fields should be equal bytes."""
    length = int.from_bytes(file[:8], "little")
    header = json.dumps(json.loads(file[8 : 8 + length]), sort_keys=True).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + file[8 + length :]


def read_kind(path: Path) -> str:
    """The kind of field that a file's header names; files without one are TensoRF's, or for its loader to refuse.

    UserError if there is no file.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist: train the field first")
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
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise UserError(f"{path} is damaged or no field ({reason(error)}): delete it and train again") from error
    return field.to(device)


def _build(header: dict, tensors: dict[str, torch.Tensor], prefix: str = "") -> Field | LocalField:
    """A field of the header's sizes; tensors tell those of its cells."""
    if "source" in header:
        parts = [_build(header[name], tensors, f"{prefix}{name}.") for name in ("source", "target")]
        return LocalField(parts[0], torch.zeros_like(tensors[prefix + "region"]), parts[1])
    config = {k: tuple(v) if isinstance(v, list) else v for k, v in header["config"].items()}
    geometry = dict(header["space"])
    geometry["box"], geometry["reference"] = torch.tensor(geometry["box"]), torch.tensor(geometry["reference"])
    config, space = FieldConfig(**config), Space(**geometry)
    resolution, steps = tuple(header["resolution"]), header["steps"]
    _check_sizes(config, space, resolution, {k.removeprefix(prefix): v for k, v in tensors.items()})
    if not 1 <= steps <= _MOST_STEPS:
        raise ValueError(f"steps={steps} has to lie in 1 to {_MOST_STEPS}")
    field = Field(config, space, resolution, steps)
    field.occupancy = torch.zeros_like(tensors[prefix + "occupancy"])
    return field


def _check_sizes(config: FieldConfig, space: Space, resolution: tuple, tensors: dict[str, torch.Tensor]) -> None:
    """ValueError where the tensors are not of the sizes in the header, which might ask for all memory there is."""
    with torch.device("meta"):
        expected = Field(replace(config, decoder="mlp"), space, resolution, 1).state_dict()
    for name, tensor in expected.items():
        theirs = name == "occupancy" or (config.decoder != "mlp" and name.startswith("decoder."))
        if not theirs and tensors[name].shape != tensor.shape:
            raise ValueError(f"its header says {list(tensor.shape)} for {name} of {list(tensors[name].shape)}")

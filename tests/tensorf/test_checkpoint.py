"""Field files: round trips bit for bit, and one clear line for every kind of broken file."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tensorf.checkpoint import KIND, load_checkpoint, read_kind, save_field
from tensorf.errors import UserError
from tensorf.renderable import load_field
from tensorf.space import Space


@pytest.fixture
def path(tmp_path):
    return tmp_path / "field.safetensors"


@pytest.fixture(params=["vm", "cp"])
def field(request, make_field):
    reference = torch.cat([torch.eye(3)[[1, 2, 0]], torch.tensor([[0.1], [1 / 3], [-7.7]])], 1)
    box = torch.tensor([[-1 / 3, -0.7, -1], [1.1, 2 / 3, 1]])
    field = make_field(request.param, Space("ndc", box, 1 / 3, 17.3, reference, 1.0), frequencies=(1, 2))
    field.occupancy = torch.rand(3, 4, 5) > 0.5
    return field


def test_round_trip_is_bit_for_bit(field, path):
    save_field(field, path)
    loaded = load_checkpoint(path)
    state = loaded.state_dict()
    assert state.keys() == field.state_dict().keys()
    for name, tensor in field.state_dict().items():
        assert torch.equal(state[name], tensor) and state[name].dtype == tensor.dtype, name
    assert loaded.config == field.config
    assert (loaded.resolution, loaded.steps) == (field.resolution, field.steps)
    a, b = loaded.space, field.space
    assert (a.kind, a.near, a.far, a.background) == (b.kind, b.near, b.far, b.background)
    assert torch.equal(a.box, b.box) and torch.equal(a.reference, b.reference)
    x = torch.rand(20, 3) * 2 - 1
    assert torch.equal(loaded.density(x) * loaded.step, field.density(x) * field.step)
    assert torch.equal(loaded.color(x, x), field.color(x, x))
    assert all(p.requires_grad for p in loaded.parameters())


def test_round_trip_after_resampling_and_shrinking(field, path):
    field.resample((9, 8, 7), 20)
    field.shrink(torch.tensor([[0.0, -0.2, -0.5], [0.8, 0.3, 0.5]]))
    save_field(field, path)
    loaded = load_checkpoint(path)
    assert loaded.resolution == field.resolution != (9, 8, 7)
    assert torch.equal(loaded.space.box, field.space.box)
    assert torch.equal(loaded.occupancy, torch.ones(1, 1, 1, dtype=torch.bool))


def test_saving_twice_replaces(field, path):
    save_field(field, path)
    with torch.no_grad():
        field.basis.weight.add_(1)
    save_field(field, path)
    assert torch.equal(load_checkpoint(path).basis.weight, field.basis.weight)
    assert [p.name for p in path.parent.iterdir()] == ["field.safetensors"]


def test_equal_fields_are_equal_bytes(field, path):
    save_field(field, path)
    save_field(load_checkpoint(path), path.with_name("again"))
    assert path.read_bytes() == path.with_name("again").read_bytes()


def refused(path, match):
    with pytest.raises(UserError, match=match) as caught:
        load_field(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file(path):
    refused(path, "train the field, or finish its run, first")


def test_a_folder_without_a_field_is_told(path):
    path.mkdir()
    refused(path, "is a folder without field.safetensors")


@pytest.mark.parametrize("kind", [str, Path])
def test_paths_may_be_texts_and_run_folders(make_field, tmp_path, kind):
    field, run = make_field(), tmp_path / "run"
    field.save(kind(run / "field.safetensors"))
    for named in (run, run / "field.safetensors"):
        assert torch.equal(load_field(kind(named)).basis.weight, field.basis.weight)


@pytest.mark.parametrize("device", ["cuda", "cuda:7", "tpu", "mps", "xpu", "meta", "auto"])
def test_a_device_that_is_not_there_is_told(make_field, path, monkeypatch, device):
    make_field().save(path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    if device == "auto":
        assert load_field(path, device).device == torch.device("cpu")
        return
    if device == "cuda" and torch.cuda.device_count():
        pytest.skip("it is there")
    with pytest.raises(UserError, match=f"^device={device} cannot be used .*: try device=cpu$"):
        load_field(path, device)


def test_a_damaged_file_is_to_be_trained_again(path):
    """In words that hold without the commands, too."""
    path.write_text("this is not a field")
    refused(path, "train it again")


@pytest.mark.parametrize("keep", [0, 5, 200, -100])
def test_truncated_file(make_field, path, keep):
    save_field(make_field(), path)
    path.write_bytes(path.read_bytes()[:keep])
    refused(path, "damaged")


def test_text_file(path):
    path.write_text("this is not a field, it is a line of text that is rather long\n" * 20)
    refused(path, "damaged")


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_foreign_safetensors(path, metadata):
    save_file({"weight": torch.zeros(3)}, path, metadata=metadata)
    refused(path, "holds no radiance field")


def test_a_field_of_another_format(path):
    save_file({"weight": torch.zeros(3)}, path, metadata={"format": "cds3d-field-1"})
    refused(path, "another version")


def altered(field, path, change, tensors=None):
    """Save, then write again with the header that `change` has edited in place, and `tensors` over the old ones."""
    save_field(field, path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    header = json.loads(metadata["field"])
    change(header)
    body = {**load_file(path), **(tensors or {})}
    save_file({k: v for k, v in body.items() if v is not None}, path, {**metadata, "field": json.dumps(header)})


@pytest.mark.parametrize(
    "change",
    [
        lambda h: h.update(resolution=[6, 5, 5]),
        lambda h: h["config"].update(feature_dim=6),
        lambda h: h["config"].update(surprise=1),
        lambda h: h["space"].pop("near"),
        lambda h: h.pop("config"),
        lambda h: h["config"].update(decomposition="cp"),
        lambda h: h["space"].update(box=[[-1.0, -1.0, -1.0]]),
        lambda h: h["space"].update(box=[[1.0, -1.0, -1.0], [1.0, 1.0, 1.0]]),
        lambda h: h["space"].update(reference=3 * [[1.0, 0.0, float("nan"), 0.0]]),
        lambda h: h["space"].update(near="1"),
        lambda h: h["space"].update(kind="sphere"),
        lambda h: h["space"].update(near=10**400),
        lambda h: h["config"].update(density_gain="2"),
        lambda h: h["config"].update(density_shift=None),
        lambda h: h.update(steps=10.5),
    ],
    ids=["resolution", "width", "unknown option", "geometry missing", "options missing", "decomposition"]
    + ["one corner", "no size", "no pose", "no number", "kind", "too large", "a text", "nothing", "half a step"],
)
def test_header_that_does_not_fit_the_tensors(make_field, path, change):
    altered(make_field(), path, change)
    refused(path, "damaged")


@pytest.mark.parametrize("tensors", [{"occupancy": None}, {"basis.weight": None}, {"stranger": torch.zeros(1)}])
def test_tensors_missing_or_too_many(make_field, path, tensors):
    altered(make_field(), path, lambda h: None, tensors)
    refused(path, "damaged")


@pytest.mark.parametrize("shape", [(0, 4, 4), (4, 4), (1, 4, 4, 4)])
def test_cells_that_compiled_loops_could_not_look_into(make_field, path, shape):
    altered(make_field(), path, lambda h: None, {"occupancy": torch.ones(shape, dtype=torch.uint8)})
    refused(path, "occupancy has to be three-dimensional")
    altered(make_field(), path, lambda h: None, {"occupancy": torch.ones(2, 2, 2)})
    refused(path, "occupancy has to be three-dimensional")


def test_a_save_that_fails_leaves_the_old_file(make_field, path, monkeypatch):
    field = make_field()
    save_field(field, path)
    before = path.read_bytes()

    def full(*_):
        raise OSError("no space left on device")

    with torch.no_grad():
        field.basis.weight.add_(1)
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space left"):
        save_field(field, path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["field.safetensors"]


def with_kind(path, kind):
    """Write the file again with this kind in its header, or without one."""
    with safe_open(path, "pt") as file:
        metadata = {k: v for k, v in file.metadata().items() if k != "kind"}
    save_file(load_file(path), path, metadata | ({} if kind is None else {"kind": kind}))


def test_a_file_names_its_kind(field, path):
    field.save(path)
    with safe_open(path, "pt") as file:
        assert file.metadata()["kind"] == KIND == read_kind(path)
    assert torch.equal(load_field(path).basis.weight, field.basis.weight)


def test_files_written_before_there_were_kinds_still_load(field, path):
    save_field(field, path)
    with_kind(path, None)
    with safe_open(path, "pt") as file:
        assert "kind" not in file.metadata()
    loaded = load_field(path).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in field.state_dict().items())


def test_an_unknown_kind_is_named(make_field, path):
    save_field(make_field(), path)
    with_kind(path, "splats")
    refused(path, "kind 'splats', which this version does not know: tensorf")


def test_saving_makes_the_folder(make_field, tmp_path):
    path = tmp_path / "runs" / "first" / "field.safetensors"
    make_field().save(path)
    assert [p.name for p in path.parent.iterdir()] == ["field.safetensors"]

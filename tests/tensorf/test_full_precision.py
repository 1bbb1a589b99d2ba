"""Fields stay float32 in programs that compute in something else."""

import contextlib
from dataclasses import replace

import pytest
import torch
from default_dtype import default
from field_defaults import field_config, train_config

from tensorf.captures import load_capture
from tensorf.local import LocalField
from tensorf.train import Trainer
from tensorf.visibility import LocalView, View

CPU = torch.device("cpu")
FIELD = field_config(density_components=(2, 1, 1), color_components=(4, 2, 2), feature_dim=6, hidden=16)


SURROUNDINGS = {
    "plain": contextlib.nullcontext,
    "float64": lambda: default(torch.float64),
    "float16": lambda: default(torch.float16),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
}


def all_of_it(folder, space, decomposition):
    """Everything that a program computes with a capture, as tensors."""
    capture = load_capture(folder, space=space, check=space == "ndc")  # it takes seconds
    settings = dict(iterations=4, batch=64, resolution=16, exposure=0.01, prune_rays=500, final_rays=500)
    config = train_config(capture.space, **settings, view_noise=0.1, upsample_at=(0.5,), stages=(0.5, 1.0))
    trainer = Trainer(capture, replace(FIELD, decomposition=decomposition), replace(config, prune_at=(0.5,)), CPU)
    losses = [trainer.step() for _ in range(4)]
    figures = torch.tensor([*losses, trainer.held_out_psnr(), trainer.share_at_near_plane()], dtype=torch.float64)
    trainer.finish()
    field, camera = trainer.field, capture.cameras[0]
    local = LocalField(field, torch.ones_like(field.occupancy))
    local.settle()
    view = View(field, camera)
    made = [figures, *field.state_dict().values(), *field.render(camera).values(), *local.render(camera).values()]
    return made + [view.color(field), *view.surfaces(field), LocalView(local, camera).color(local)]


@pytest.mark.parametrize(("space", "decomposition"), [("ndc", "vm"), ("box", "cp"), ("unbounded", "vm")])
def test_results_do_not_hang_on_what_the_program_computes_in(world_folder, space, decomposition):
    results = {}
    for name, surroundings in SURROUNDINGS.items():
        with surroundings():
            results[name] = all_of_it(world_folder, space, decomposition)
    plain = results.pop("plain")
    assert plain[0].isfinite().all()
    for name, made in results.items():
        for ours, theirs in zip(plain, made, strict=True):
            assert ours.dtype == theirs.dtype and torch.equal(ours, theirs), name


CONVERSIONS = [
    lambda field: field.half(),
    lambda field: field.double(),
    lambda field: field.bfloat16(),
    lambda field: field.to(torch.float64),
    lambda field: torch.nn.ModuleList([field]).half(),
]


@pytest.mark.parametrize("convert", CONVERSIONS, ids=["half", "double", "bfloat16", "to", "in a module"])
@pytest.mark.parametrize("nested", [False, True])
def test_a_field_refuses_other_numbers_and_stays_as_it_was(make_field, camera, convert, nested):
    field = make_field()
    field = LocalField(field, torch.ones_like(field.occupancy)) if nested else field
    before = field.render(camera)["color"]
    with pytest.raises(ValueError, match="a field stays float32: it cannot compute in (b?float16|float64)"):
        convert(field)
    assert {p.dtype for p in field.parameters()} == {torch.float32}
    assert torch.equal(field.render(camera)["color"], before)


def test_a_field_is_still_moved(make_field):
    field = make_field()
    assert field.to("cpu").float().share_memory() is field
    assert field.to("meta").space.box.device.type == "meta"

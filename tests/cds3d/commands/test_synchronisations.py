"""How often a step makes the CPU wait for a GPU, counted on the device of `fake_device`.

Each limit is what is needed: one number decides whether the gradients are finite, and each list of rays or samples
whose length depends on values is asked for once. A line that asks once more makes these tests fail; the message of the
failure names all lines that ask.
"""

import pytest
import torch
from fake_device import DEVICE, Counter

from cds3d.cli import run_command
from cds3d.editor import Editor
from cds3d.objectives.objective import fetched
from tensorf.occupancy import count_by_ray
from tensorf.packed import split_indices
from tensorf.train import Trainer


class Enough(Exception):
    """The steps are counted: what a command does with their result is not."""


class Steps(list):
    limit = 3


@pytest.fixture()
def steps(there, monkeypatch):
    """A list of the places where each step has waited, and how often; after `taken.limit` of them there is `Enough`."""
    taken = Steps()
    for kind in (Editor, Trainer):

        def step(self, own=kind.step):
            if len(taken) == taken.limit:
                raise Enough
            Counter.reset()
            result = own(self)
            taken.append(dict(Counter.places))
            return result

        monkeypatch.setattr(kind, "step", step)
    return taken


def run_steps(command, options):
    with pytest.raises(Enough):
        run_command(command, options)


def most(steps):
    """The step that waited most, and how often."""
    places = max(steps, key=lambda places: sum(places.values()))
    return sum(places.values()), places


FIELDS = {  # options; the number of the first visits to cameras and of all later steps
    "default": (["edit.region.visits=1"], 5, 16, 4),
    "click": (["at=0.4,0.5,view001", "radius=0.3", "region=both", "edit.region.visits=1"], 5, 18, 6),
    "shape": (
        ["edit=shape", "edit.width=48", "edit.volume.agreement=0.01", "edit.region.mask_threshold=0.01"],
        7,  # two look, then every camera comes for the first time, and the region is found, once
        46,
        2,
    ),
}


@pytest.mark.parametrize(("more", "visits", "at_first", "later"), FIELDS.values(), ids=FIELDS)
def test_a_step_of_a_fields_edit(more, visits, at_first, later, steps, tmp_path, edit_options, trained):
    steps.limit = visits + 2
    run_steps("edit", [*edit_options, *more, "edit.iterations=12", f"output={tmp_path}/edit"])
    number, places = most(steps[:visits])
    assert number <= at_first, places
    number, places = most(steps[visits:])
    assert number <= later, places


@pytest.mark.parametrize("what", ["objective=cds", "objective=csd", "pixels"])
def test_a_step_of_an_images_edit(what, steps, tmp_path, image_options):
    more = ["edit=pixels"] if what == "pixels" else [what]
    steps.limit = 1
    run_steps("edit", [*image_options, *more, "edit.iterations=12", f"output={tmp_path}/edit"])
    number, places = most(steps)
    assert number == 1, places


@pytest.mark.parametrize("space", ["ndc", "box", "unbounded"])
def test_a_step_of_training(space, steps, tmp_path, train_options):
    options = [*train_options, f"scene.space={space}", "field.iterations=12", "field.sightings=0"]
    options += ["field.prune_at=[]", "field.stages=[1.0]", "field.upsample_at=[]"]
    run_steps("train", [*options, f"output={tmp_path}/source"])
    number, places = most(steps[1:])  # the box is measured once
    assert number == 3, places


# --- what the counter counts


def waits(action):
    Counter.reset()
    action()
    return Counter.synchronisations


def test_the_counter_counts_what_cuda_waits_for(there):
    x, here = torch.rand(6).to(DEVICE), torch.tensor([1, 2])
    mask, count = x > 0.5, torch.tensor([1, 2]).to(DEVICE)
    assert waits(lambda: float(x.sum())) == waits(lambda: bool(mask.any())) == waits(lambda: x.tolist()) == 1
    assert waits(lambda: mask.nonzero()) == waits(lambda: x[mask]) == waits(lambda: x[here]) == 1
    assert waits(lambda: torch.repeat_interleave(count)) == waits(lambda: x.cpu()) == 1
    assert waits(lambda: here.to(DEVICE)) == waits(lambda: torch.tensor([1.0], device=DEVICE)) == 1
    assert waits(lambda: torch.bincount(count)) == 2
    assert waits(lambda: torch.linalg.inv(torch.eye(3).to(DEVICE))) == 2  # one for the copy
    assert waits(lambda: x[count] + x.sort().values[:2] * 2) == 0
    assert waits(lambda: torch.repeat_interleave(count, output_size=3)) == 0
    assert waits(lambda: here.to(DEVICE, non_blocking=True)) == 0
    assert waits(lambda: x.masked_fill_(mask, 0.0)) == 0


def test_helpers_that_ask_once_or_not_at_all(there):
    mask = torch.tensor([False, True, True, False, True])
    inside, outside = split_indices(mask)
    assert inside.tolist() == [1, 2, 4] and outside.tolist() == [0, 3]
    moved = mask.to(DEVICE)
    for count, expected in ((None, 1), (3, 0)):
        parts = []
        assert waits(lambda count=count, parts=parts: parts.extend(split_indices(moved, count))) == expected
        assert [p.tolist() for p in parts] == [[1, 2, 4], [0, 3]]
    ray = torch.tensor([0, 0, 2, 2, 2]).to(DEVICE)
    assert waits(lambda: count_by_ray(ray, 4)) == 0
    assert count_by_ray(ray, 4).tolist() == torch.bincount(ray.cpu(), minlength=4).tolist()
    given = [1, torch.tensor(2.5).to(DEVICE), 0.25, torch.tensor(True).to(DEVICE)]
    got = []
    assert waits(lambda: got.extend(fetched(given))) == 1
    assert got == [1, 2.5, 0.25, 1.0] and isinstance(got[1], float)
    assert fetched([1.5, 2]) == [1.5, 2] and fetched([]) == []

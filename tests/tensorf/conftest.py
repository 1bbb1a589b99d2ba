"""Small fields, cameras and captures that the tests of this room share."""

import pytest
import torch
from field_defaults import field_config
from shapes import write_shapes

from tensorf.cameras import Camera
from tensorf.captures import load_capture
from tensorf.field import Field
from tensorf.space import Space


@pytest.fixture
def make_space():
    """Box: the cube of half side 1. NDC: near plane at depth 1, reference camera at the origin, axes aligned."""

    def make(kind="box", background=0.0):
        box = torch.tensor([[-1.0, -1, -1], [1, 1, 1]])
        return Space(kind, box, near=1.0, far=10.0, reference=torch.eye(3, 4), background=background)

    return make


@pytest.fixture
def make_field(make_space):
    """A field of a few hundred numbers with structure in it: some rays meet a surface, others only fog."""

    def make(decomposition="vm", space=None, resolution=(6, 5, 4), steps=12, gain=6.0, **options):
        torch.manual_seed(0)
        small = dict(density_components=(2, 2, 2), color_components=(4, 2, 2), feature_dim=5, hidden=8)
        density = dict(density_shift=-3.0, density_gain=1.0)
        config = field_config(**{**small, **density, "decomposition": decomposition, **options})
        field = Field(config, space or make_space(), resolution, steps)
        with torch.no_grad():
            for p in [*field.density_grid.parameters(), *field.color_grid.parameters()]:
                p.mul_(gain)
        return field

    return make


@pytest.fixture
def camera():
    """9 x 7 pixels, 3 units in front of the origin on the -z side, looking along +z."""
    pose = torch.eye(3, 4)
    pose[2, 3] = -3.0
    return Camera(pose, fx=9.0, fy=9.0, cx=4.5, cy=3.5, width=9, height=7)


@pytest.fixture(scope="session")
def world_folder(tmp_path_factory):
    """Eight 48x36 photos of a ball, a block, a floor and a wall, in LLFF layout."""
    folder = tmp_path_factory.mktemp("world")
    write_shapes(folder, views=8, width=48, height=36)
    return folder


@pytest.fixture(scope="session")
def ndc_capture(world_folder):
    return load_capture(world_folder)


@pytest.fixture(scope="session")
def box_capture(world_folder):
    return load_capture(world_folder, space="box")

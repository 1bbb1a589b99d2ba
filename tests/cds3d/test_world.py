"""The procedural world: solids by hand, edits that change what they name and nothing else, captures and their truth."""

import json
import math
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cds3d.metrics.truth import changed_region
from cds3d.pocket.world.capture import WorldCapture, words, write_capture, write_orbit
from cds3d.pocket.world.modelling import box, cone, cylinder, ellipsoid
from cds3d.pocket.world.raycast import PARTS, render
from cds3d.pocket.world.scenes import (
    ANIMALS,
    COLORS,
    FLOWERS,
    GROUNDS,
    MATERIALS,
    OBJECTS,
    SPECIES,
    Attributes,
    Jitter,
    article,
    build_scene,
    close_camera,
    look_camera,
    training_view,
)
from tensorf.cameras import Camera
from tensorf.captures import load_capture
from tensorf.errors import UserError

ROOT = Path(__file__).resolve().parents[2]

FLOWER = Attributes(seed=3, subject="flower", species="rose", color="orange", ground="sky")


def grown(mask, pixels=1):
    """A (H, W) mask and its neighbours: renders are softened by a pixel."""
    padded = np.pad(mask, pixels)
    height, width = mask.shape
    span = range(2 * pixels + 1)
    return np.any([padded[i : i + height, j : j + width] for i in span for j in span], 0)


def view(attributes, width=64, height=48, **options):
    return render(build_scene(attributes, width, height), **options)


def test_the_same_seed_is_the_same_image():
    assert np.array_equal(view(FLOWER).image, view(FLOWER).image)
    assert not np.array_equal(view(FLOWER).image, view(Attributes(**{**vars(FLOWER), "seed": 4})).image)
    assert Attributes.sample(17) == Attributes.sample(17)


def test_samples_are_of_the_world_and_cover_it():
    drawn = [Attributes.sample(i) for i in range(300)]
    for a in drawn:
        assert a.species in SPECIES[a.subject]
    assert {a.species for a in drawn} == {*FLOWERS, *ANIMALS, *OBJECTS}
    assert {a.material for a in drawn if a.subject == "object"} == set(MATERIALS)
    assert {a.color for a in drawn} == set(COLORS) and {a.ground for a in drawn} == set(GROUNDS)


@pytest.mark.parametrize("species", FLOWERS)
@pytest.mark.parametrize("ground", GROUNDS)
def test_another_colour_changes_petals_only(species, ground):
    attributes = FLOWER.edited(species=species, ground=ground)
    before, after = view(attributes, supersample=2), view(attributes.edited(color="blue"), supersample=2)
    assert np.array_equal(before.subject, after.subject)
    assert np.array_equal(before.depth, after.depth)
    differs = (before.image != after.image).any(-1)
    assert not (differs & ~grown(before.subject)).any()
    region = changed_region(before.image, after.image)
    assert 0.2 * before.subject.sum() < region.sum()  # petals are a good part of a flower
    assert (differs & ~region).sum() < 0.15 * region.sum()  # and what else differs is their rim
    red, blue = (after.image[region].astype(float) - before.image[region]).mean(0)[[0, 2]]
    assert red < -60 and blue > 60  # from orange (0.97, 0.47, 0.05) to blue (0.15, 0.28, 0.88)


@pytest.mark.parametrize("ground", [g for g in GROUNDS if g != "sky"])
def test_another_ground_leaves_the_subject_alone(ground):
    before, after = view(FLOWER), view(FLOWER.edited(ground=ground))
    assert before.subject.any() and np.array_equal(before.subject, after.subject)
    assert np.array_equal(before.depth[before.subject], after.depth[after.subject])
    inside = ~grown(~before.subject)
    assert inside.any() and np.array_equal(before.image[inside], after.image[inside])
    assert changed_region(before.image, after.image)[~before.subject].mean() > 0.3


@pytest.mark.parametrize("species", OBJECTS)
@pytest.mark.parametrize("change", [{"color": "blue"}, {"material": "wooden"}, {"material": "metal"}])
def test_another_look_changes_an_object_s_surface_only(species, change):
    attributes = Attributes(5, "object", species, "orange", "table")
    before, after = view(attributes, supersample=2), view(attributes.edited(**change), supersample=2)
    assert np.array_equal(before.parts, after.parts) and np.array_equal(before.depth, after.depth)
    differs = (before.image != after.image).any(-1)
    assert not (differs & ~grown(before.subject)).any()
    assert changed_region(before.image, after.image).sum() > 0.3 * before.subject.sum()


def test_wood_and_metal_show_no_colour():
    wooden = Attributes(5, "object", "mug", "orange", "table", "wooden")
    assert np.array_equal(view(wooden).image, view(wooden.edited(color="blue")).image)
    assert not wooden.painted and wooden.edited(material="plastic").painted


@pytest.mark.parametrize(
    ("species", "parts"),
    [
        ("daisy", {"stem", "leaf", "petal", "heart"}),
        ("tulip", {"stem", "leaf", "petal"}),
        ("cat", {"body", "leg", "head", "ear", "face"}),
        ("cow", {"body", "leg", "head", "ear", "face", "horn"}),
        ("mug", {"body", "inside", "handle"}),
        ("teapot", {"body", "lid", "spout", "handle"}),
        ("ball", {"body"}),
        ("chair", {"seat", "leg", "back"}),
    ],
)
def test_parts_are_labelled(species, parts):
    out = view(Attributes(8, "flower", "rose", "red", "sky").edited(species=species), 128, 96)
    seen = {PARTS[i] for i in np.unique(out.parts)} - {""}
    assert seen - {"tail"} == parts
    assert np.array_equal(out.subject, out.parts > 0)


def test_a_part_that_is_none_is_refused():
    with pytest.raises(ValueError, match="part 'wing' is none of"):
        ellipsoid((0, 0, 0), 1, (1, 1, 1), part="wing")


@pytest.mark.parametrize("species", [*FLOWERS[:3], *ANIMALS, *OBJECTS])
def test_another_species_changes_the_subject_not_the_camera(species):
    edited = FLOWER.edited(species=species)
    assert species in SPECIES[edited.subject]
    before, after = view(FLOWER), view(edited)
    assert after.subject.mean() > 0.01
    assert changed_region(before.image, after.image).any()
    if species in FLOWERS:
        assert torch.equal(build_scene(FLOWER).camera.pose, build_scene(edited).camera.pose)


def test_captions_are_grammatical():
    nouns = "|".join(["flower", "animal", "object", *FLOWERS, *ANIMALS, *OBJECTS])
    looks = "|".join([*COLORS, *MATERIALS])
    places = "|".join(GROUNDS.values())
    pattern = re.compile(rf"(a photo of |a picture of )?(an?) (({looks}) )?({nouns})( ({places}))?")
    seen = set()
    for seed in range(150):
        for style in range(4):
            attributes = Attributes.sample(seed)
            caption = attributes.caption(style)
            match = pattern.fullmatch(caption)
            assert match, caption
            first = match[4] or match[5]
            assert match[2] == ("an" if first in ("orange", "animal", "object") else "a"), caption
            look = (attributes.color, attributes.material)[: 1 if attributes.subject == "flower" else 2]
            assert match[4] in (None, *look) and match[7] in (None, GROUNDS[attributes.ground])
            assert match[4] != attributes.color or attributes.painted
            assert match[5] in (attributes.subject, attributes.species)
            seen.add(caption)
    assert any("an orange flower" in caption for caption in seen)
    assert len(seen) > 200


def test_article():
    assert [article(w) for w in ("orange flower", "animal", "red rose")] == ["an", "an", "a"]


# --- Solids by hand. The camera stands at (0, 1, 5), looks along -z, and sees y up: 100 pixels a unit of slope. ---


@pytest.mark.parametrize(
    ("words_", "changes"),
    [
        (["blue"], {"color": "blue"}),
        (["wooden"], {"material": "wooden"}),
        (["chair"], {"species": "chair"}),
        (["blue", "ball"], {"color": "blue", "species": "ball"}),
        (["cat"], {"species": "cat", "subject": "animal"}),
        (["red"], None),  # it is red already
        (["wooden", "blue"], None),  # wood shows no colour
        (["shiny"], None),
    ],
)
def test_edits_of_objects(words_, changes):
    mug = Attributes(5, "object", "mug", "red", "table")
    assert mug.towards(words_) == (None if changes is None else Attributes(**{**vars(mug), **changes}))


def test_a_colour_makes_an_object_plastic():
    mug = Attributes(5, "object", "mug", "red", "table", "metal")
    assert mug.towards(["red"]) == Attributes(5, "object", "mug", "red", "table")
    assert mug.towards(["metal"]) is None
    assert FLOWER.towards(["wooden"]) is None


@pytest.fixture
def scene():
    """A clear stage: the world's ground and sky, and no solids."""
    scene = build_scene(FLOWER)
    scene.solids = []
    return scene


def front(width=61, height=41):
    pose = torch.tensor([[1.0, 0, 0, 0], [0, -1, 0, 1], [0, 0, -1, 5]])
    return Camera(pose, 100.0, 100.0, width / 2, height / 2, width, height)


@pytest.mark.parametrize("size", [(61, 41), (60, 40), (33, 47)])
def test_a_ball_by_hand(scene, size):
    scene.solids = [ellipsoid((0, 1, 0), 0.5, (1, 0, 0), grain=0.0, part="body")]
    out = render(scene, front(*size))
    width, height = size
    assert out.image.shape == (height, width, 3) and out.image.dtype == np.uint8
    # Tangents: radius / sqrt(distance^2 - radius^2) = 0.5 / sqrt(24.75) = 0.10050, so 10.05 pixels.
    v, u = np.mgrid[:height, :width] + 0.5
    from_center = np.hypot(u - width / 2, v - height / 2)
    assert out.subject[from_center < 10.0].all() and not out.subject[from_center > 10.1].any()
    # The nearest pixel's depth: 5 - 0.5, within what half a pixel off the centre makes.
    assert out.depth[out.subject].min() == pytest.approx(4.5, abs=2e-3)
    assert out.depth[0, width // 2] > 5


def test_an_ellipsoid_is_as_wide_and_tall_as_its_radii(scene):
    scene.solids = [ellipsoid((0, 1, 0), (1.0, 0.25, 0.01), (1, 0, 0), part="body")]  # a disc that faces the camera
    out = render(scene, front())
    rows, columns = np.nonzero(out.subject)
    # 100 * 1 / 5 = 20 pixels either side, 100 * 0.25 / 5 = 5 above and below: 40 and 10 pixels, or one fewer or more.
    assert abs(np.ptp(columns) + 1 - 40) <= 1 and abs(np.ptp(rows) + 1 - 10) <= 1


def test_a_cone_by_hand(scene):
    # Base radius 0.5 around (0, 0.5, 0), apex at (0, 1.5, 0).
    scene.solids = [cone((0, 0.5, 0), (0.5, 1.0, 0.5), (1, 0, 0), np.eye(3), part="body")]
    camera = front(61, 61)
    out = render(scene, camera)
    rows, columns = np.nonzero(out.subject)
    # The apex is 0.5 above the camera, 5 ahead: row 30.5 - 100 * 0.5 / 5 = 20.5. It is as wide as nothing there.
    assert rows.min() in (20, 21) and abs(columns[rows == rows.min()].mean() - 30) <= 1
    # Camera height, half the cone's: radius 0.25. The silhouette is a little wider than 100 * 0.25 / 5 = 5 either side.
    assert out.subject[30].sum() in (10, 11)
    assert out.depth[30, 30] == pytest.approx(5 - 0.25, abs=0.01)
    # The open base's rim: its near edge (z = 0.5) is 4.5 ahead and 0.5 below: row 30.5 + 11.1.
    assert rows.max() in (41, 42)


def test_a_box_by_hand(scene):
    scene.solids = [box((0, 1, 0), (0.5, 0.25, 1.0), (1, 0, 0), np.eye(3), part="body", grain=0.0)]
    out = render(scene, front())
    rows, columns = np.nonzero(out.subject)
    # Its front face is 4 ahead: 100 * 0.5 / 4 = 12.5 pixels either side, 100 * 0.25 / 4 = 6.25 above and below.
    assert abs(np.ptp(columns) + 1 - 25) <= 1 and abs(np.ptp(rows) + 1 - 12.5) <= 1
    assert np.allclose(out.depth[out.subject], 4, atol=1e-4)  # a flat face, parallel to the image


def test_a_cylinder_by_hand(scene):
    scene.solids = [cylinder((0, 0.5, 0), (0.5, 0.25, 0.5), (1, 0, 0), np.eye(3), part="body", grain=0.0)]
    out = render(scene, front())
    rows, columns = np.nonzero(out.subject)
    # From y = 0.25 to 0.75. The lid's far rim is 5.5 ahead and 0.25 below the camera: row 20.5 + 4.5; the bottom's near
    # rim is 4.5 ahead and 0.75 below: row 20.5 + 16.7. At the axis' depth it is 100 * 0.5 / 5 = 10 pixels either side.
    assert rows.min() in (24, 25, 26) and rows.max() in (36, 37)
    assert abs(np.ptp(columns) + 1 - 20) <= 1
    # On the lid the depth is 0.25 / slope; pixel row 25 has its centre 5 below the axis: the axis of the cylinder.
    assert out.depth[25, 30] == pytest.approx(5, rel=1e-3)
    assert out.depth[30, 30] == pytest.approx(4.5, rel=1e-3)  # and the side's nearest line


def test_gloss_mirrors_the_sky(scene):
    looks = {}
    for gloss in (0.0, 1.0):
        scene.solids = [ellipsoid((0, 1, 0), 0.5, (0.5, 0.5, 0.5), grain=0.0, gloss=gloss, part="body")]
        looks[gloss] = render(scene, front()).image[:, 30, 0].astype(int)
    # A mirror shows sky above and ground below, with a sharper change than matt shading.
    assert looks[1.0][14] > looks[1.0][27] + 60
    assert np.ptp(looks[1.0][12:29]) > np.ptp(looks[0.0][12:29])


def patterned(scene, **look):
    """Colours (n, 3) of the inside of a red ball."""
    scene.solids = [ellipsoid((0, 1, 0), 0.5, (1, 0, 0), part="body", grain=0.0, **look)]
    out = render(scene, front())
    return out.image[~grown(~out.subject, 2)].astype(int)


def test_sectors_have_two_colours(scene):
    red, _, blue = patterned(scene, pattern="sectors", color2=np.float32([0, 0, 1])).T
    assert ((red > 60) & (blue < 20)).mean() > 0.2 and ((blue > 60) & (red < 20)).mean() > 0.2


def test_wood_is_of_one_hue(scene):
    plain, wood = patterned(scene), patterned(scene, pattern="wood")
    assert np.std(wood[:, 0] - plain[:, 0]) > 10 and wood[:, 1:].max() == 0


def test_the_ground_by_hand(scene):
    out = render(scene, front(61, 41))
    # The bottom row's centre is 20 pixels below the axis: slope 0.2, so the ground 1 below is 5 ahead.
    assert out.depth[40, 30] == pytest.approx(5, rel=1e-4)
    assert np.isinf(out.depth[:15]).all()  # sky
    assert not out.subject.any()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_nearer_solids_hide_farther_ones(scene, order):
    near = ellipsoid((0, 1, 1), 0.2, (1, 0, 0), grain=0.0, part="body")
    far = ellipsoid((0, 1, -1), 0.6, (0, 0, 1), grain=0.0, part="body")
    scene.solids = [(near, far)[i] for i in order]
    out = render(scene, front())
    assert out.depth[20, 30] == pytest.approx(3.8, abs=2e-3)
    red, _, blue = out.image[20, 30].astype(int)
    assert red > 60 and blue < 20
    red, _, blue = out.image[20, 38].astype(int)  # 7.5 pixels off: outside the near one (5.0), inside the far (10.05)
    assert blue > 60 and red < 20


def test_solids_behind_the_camera_are_not_drawn(scene):
    scene.solids = [ellipsoid((0, 1, 7), 0.5, (1, 0, 0), part="body")]
    assert not render(scene, front()).subject.any()


def test_only_subjects_are_in_the_mask(scene):
    scene.solids = [ellipsoid((0, 1, 0), 0.5, (1, 0, 0))]
    out = render(scene, front())
    assert not out.subject.any() and out.depth.min() < 4.6


@pytest.mark.parametrize("supersample", [2, 3])
def test_supersampling_keeps_the_size(scene, supersample):
    scene.solids = [ellipsoid((0, 1, 0), 0.5, (1, 0, 0), grain=0.0, part="body")]
    plain, fine = render(scene, front(33, 27)), render(scene, front(33, 27), supersample=supersample)
    assert fine.image.shape == (27, 33, 3) and fine.subject.shape == fine.depth.shape == (27, 33)
    assert (plain.subject != fine.subject).sum() < 0.1 * plain.subject.sum()
    edge = fine.image[13, :, 0].astype(int)
    assert np.abs(fine.image.astype(int) - plain.image).mean() < 6 and len(np.unique(edge)) > 3


def test_look_camera_by_hand():
    camera = look_camera((0, 1, 5), (0, 1, 0), width=64, height=48)
    assert torch.allclose(camera.pose, front().pose, atol=1e-6)
    # The vertical field of view is 0.7 radians: f = 24 / tan(0.35).
    assert camera.fx == camera.fy == pytest.approx(24 / math.tan(0.35))
    rolled = look_camera((0, 1, 5), (0, 1, 0), roll=0.3)
    assert rolled.forward.tolist() == pytest.approx([0, 0, -1], abs=1e-6)
    assert torch.linalg.det(rolled.pose[:, :3]).item() == pytest.approx(1, abs=1e-5)


# --- Captures ---


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("capture")
    write_capture(path, FLOWER.edited(color="yellow"), views=5, width=40, height=30)
    return path


def test_a_capture_loads_with_the_cameras_it_was_made_with(folder):
    capture, world = load_capture(folder), WorldCapture.read(folder)
    assert capture.forward_facing and 0 < capture.near < capture.far
    assert [n.removesuffix(".jpg") for n in capture.image_names] == list(world.cameras)
    similarity = capture.world_from_capture.float()
    scale = torch.linalg.det(similarity[:3, :3]).item() ** (1 / 3)
    for camera, truth in zip(capture.cameras, world.cameras.values()):
        assert (camera.width, camera.height, camera.cx, camera.cy) == (40, 30, 20.0, 15.0)
        assert camera.fx == camera.fy == pytest.approx(truth.fx)
        assert torch.allclose(camera.pose[:, :3], similarity[:3, :3] @ truth.pose[:, :3] / scale, atol=1e-5)
        position = similarity[:3, :3] @ truth.position + similarity[:3, 3]
        assert torch.allclose(camera.position, position, atol=1e-5)
    # The flower stands in front of every camera, beyond near.
    for camera in capture.cameras:
        subject = similarity[:3, :3] @ torch.tensor([0.0, 0.5, 0]) + similarity[:3, 3]
        assert (subject - camera.position) @ camera.forward > capture.near


def test_a_capture_s_photos_are_the_world_s_views(folder):
    capture, world = load_capture(folder), WorldCapture.read(folder)
    for i, name in enumerate(world.cameras):
        exact = world.view(name, world.attributes, 40, 30)
        error = (capture.images[i].numpy().astype(float) - exact.image) / 255
        assert -10 * math.log10((error**2).mean()) > 27  # JPEG's doing
    assert world.view("view000", world.attributes, 21, 17).image.shape == (17, 21, 3)


@pytest.mark.parametrize(
    ("source", "target", "changes"),
    [
        ("a yellow flower", "a red flower", {"color": "red"}),
        ("a yellow flower", "A photo, of a RED flower!", {"color": "red"}),  # what is no attribute says nothing
        ("an orange flower", "a red flower", {"color": "red"}),
        ("a yellow flower", "a shiny red flower", None),  # what the world does not know it cannot show
        ("a photo of a yellow flower", "a photo of a red flower", {"color": "red"}),
        ("a rose", "a tulip", {"species": "tulip"}),
        ("a rose", "a cat", {"species": "cat", "subject": "animal"}),
        ("a rose", "a wooden chair", {"species": "chair", "subject": "object", "material": "wooden"}),
        ("a yellow rose", "a blue daisy", {"color": "blue", "species": "daisy"}),
        ("a yellow flower", "a metal flower", None),
        ("a yellow flower", "a yellow flower", None),
        ("a flower", "a yellow flower", None),  # it is yellow already
        ("a flower", "a rose", None),
    ],
)
def test_edits_that_the_world_knows(folder, source, target, changes):
    world = WorldCapture.read(folder)
    edited = world.edited(source, target)
    if changes is None:
        assert edited is None
    else:
        assert vars(edited) == {**vars(world.attributes), **changes}


def test_animals_have_no_colour_to_edit():
    world = WorldCapture(FLOWER.edited(species="cat"), {})
    assert world.edited("a cat", "a red cat") is None
    assert world.edited("a cat", "a dog").species == "dog"


def test_words():
    assert words("An Orange flower, on  grass!") == ["an", "orange", "flower", "on", "grass"]


def test_changed_region_by_hand():
    before = np.zeros((1, 4, 3), np.uint8)
    after = before.copy()
    after[0, 1, 2], after[0, 2, 0], after[0, 3] = 15, 16, 255
    assert changed_region(before, after).tolist() == [[False, False, True, True]]
    assert changed_region(after, before).tolist() == [[False, False, True, True]]  # no wrap-around below zero


def test_other_folders_are_no_world(tmp_path):
    assert WorldCapture.read(tmp_path) is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:50],
        lambda text: "",
        lambda text: "[]",
        lambda text: json.dumps({k: v for k, v in json.loads(text).items() if k != "cameras"}),
        lambda text: json.dumps({**json.loads(text), "attributes": {"seed": 1}}),
        lambda text: json.dumps({**json.loads(text), "width": "wide"}),
    ],
    ids=["cut", "empty", "list", "no cameras", "attributes", "width"],
)
def test_damaged_world_json_is_told(folder, tmp_path, damage):
    (tmp_path / "world.json").write_text(damage((folder / "world.json").read_text()))
    with pytest.raises(UserError, match="world.json is damaged.*make_scene.py"):
        WorldCapture.read(tmp_path)


def test_an_orbit_loads_as_a_capture_that_looks_around(tmp_path):
    write_orbit(tmp_path, Attributes(5, "object", "chair", "red", "sky"), views=12, held_out=3, size=40)
    capture = load_capture(tmp_path)
    assert not capture.forward_facing and capture.background == "white"
    assert len(capture.train) == 12 and len(capture.test) == 3
    assert capture.images.shape[1:] == (40, 40, 3)
    assert (capture.images[:, 0, 0] == 255).all()  # transparent around the chair
    red = (capture.images[..., 0] > 1.5 * capture.images[..., 1]).float().mean((1, 2))
    assert red.min() > 0.03  # which every camera sees


# --- What pocket is trained on ---


def test_training_sees_every_color_and_material_evenly():
    drawn = [Attributes.sample_evenly(seed) for seed in range(6000)]
    subjects = Counter(a.subject for a in drawn)
    assert min(subjects.values()) > 0.28 * len(drawn)
    for subject in ("flower", "object"):
        colors = Counter(a.color for a in drawn if a.subject == subject and a.painted)
        assert len(colors) == len(COLORS) and max(colors.values()) < 1.35 * min(colors.values())
    materials = Counter(a.material for a in drawn if a.subject == "object")
    assert materials["wooden"] + materials["metal"] > 0.35 * subjects["object"]


@pytest.mark.parametrize("species", ["cat", "rose", "chair"])
def test_a_close_camera_shows_more_of_the_subject(species):
    grown, kept = [], []
    for seed in range(12):
        scene = build_scene(Attributes.sample(seed).edited(species=species), 64, 48)
        camera = close_camera(scene, Jitter(seed))
        far, near = render(scene), render(scene, camera)
        grown.append(near.subject.mean() / far.subject.mean())
        kept.append(near.subject.any() and camera.position[1] > 0)
    assert all(kept) and np.mean(grown) > 1.4


def test_a_photograph_needs_no_world():
    code = (
        "import sys, cds3d.commands.edit\n"
        "assert not [m for m in sys.modules if m.startswith(('cds3d.pocket.world', 'cds3d.pocket.model'))]"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_two_flowers_stand_beside_each_other():
    """Either can change its colour without the other; they differ in more than that; pocket never sees them."""
    two = replace(Attributes(7, "flower", "daisy", "red", "garden"), beside="yellow")
    views = [render(build_scene(a, 64, 48), build_scene(a, 64, 48).camera).image.astype(int) for a in (
        two, replace(two, beside="blue"), replace(two, color="blue"))]  # fmt: skip
    right, left = (np.abs(view - views[0]).max(-1) > 15 for view in views[1:])
    assert right.any() and left.any() and (right & left).sum() < 0.1 * right.sum()  # pixels at an edge show both
    assert np.nonzero(right)[1].mean() > np.nonzero(left)[1].mean() + 10
    heights = [np.nonzero(mask)[0].mean() for mask in (right, left)]
    assert abs(heights[0] - heights[1]) > 0.5
    assert all(Attributes.sample(s).beside is None and Attributes.sample_evenly(s).beside is None for s in range(50))
    for beside, subject in (("beige", "flower"), ("red", "animal")):
        with pytest.raises(ValueError, match="beside"):
            Attributes(7, subject, "daisy" if subject == "flower" else "cat", "red", "garden", beside=beside)


def test_a_prompt_says_which_of_two_flowers_is_meant():
    two = WorldCapture(Attributes(7, "flower", "daisy", "red", "garden", beside="yellow"), {})
    assert two.edited("a yellow daisy", "a blue daisy") == replace(two.attributes, beside="blue")
    assert two.edited("a red daisy", "a blue daisy") == replace(two.attributes, color="blue")
    assert two.edited("a red and a yellow daisy", "a blue daisy").color == "blue"
    assert two.edited("a yellow daisy", "a yellow tulip") is None and two.edited("a yellow daisy", "yellow") is None


def test_the_second_flower_has_a_pose_of_its_own():
    scene = build_scene(Attributes(5, "flower", "tulip", "red", "table", beside="blue"))
    flowers = [s for s in scene.solids if s.part]
    left, right = flowers[: len(flowers) // 2], flowers[len(flowers) // 2 :]
    assert len(left) == len(right) > 2
    apart = np.stack([b.center - a.center for a, b in zip(left, right)])
    assert apart.std(0).max() > 0.01  # a copy would be the same distance apart everywhere


def test_two_of_five_training_views_are_close():
    views = [training_view(Attributes.sample(seed)) for seed in range(300)]
    close = [camera is not scene.camera for scene, camera in views]
    assert 0.33 < sum(close) / 300 < 0.47  # 0.4, give or take two and a half standard deviations

"""The benchmark of edits: its cases, figures and statistics by hand."""

import json
import math
from functools import partial

import numpy as np
import pytest
import torch
from fakes import TINY_SCENE

from cds3d.bench import fields, looks, report
from cds3d.bench import run as bench_run
from cds3d.bench.images import picture_and_judge
from cds3d.bench.tasks import IMAGE_TASKS, cases, other_looks
from cds3d.cli import run_command
from cds3d.metrics.truth import Truth
from cds3d.options import load_config
from cds3d.pocket.model.judge import agrees, held_out_accuracy, labels, load_judge
from cds3d.pocket.model.training import HELD_OUT_SEED
from cds3d.pocket.world.capture import WorldCapture, write_capture
from cds3d.pocket.world.raycast import render
from cds3d.pocket.world.scenes import ANIMALS, FLOWERS, OBJECTS, Attributes, build_scene
from tensorf.errors import UserError


@pytest.fixture(scope="module")
def judge():
    return load_judge()


@pytest.mark.parametrize("task", IMAGE_TASKS)
def test_cases_are_edits_that_their_prompts_ask_for(task):
    for case in cases(task, 20):
        capture = WorldCapture(case.source, {})
        assert capture.edited(case.src, case.tgt) == case.target != case.source
        assert capture.edited(case.src, f"A photo of {case.tgt}") == case.target
        assert case.source.seed == case.target.seed >= HELD_OUT_SEED


def test_tuning_and_judging_share_no_scene():
    seeds = [{c.source.seed for task in IMAGE_TASKS for c in cases(task, 50, tuning=t)} for t in (False, True)]
    assert len(seeds[0]) == len(seeds[1]) == 50 * len(IMAGE_TASKS) and not seeds[0] & seeds[1]


# --- Figures ---


def test_figures_of_doing_nothing_and_of_the_truth(judge):
    case = cases("color", 1)[0]
    before, after = (render(build_scene(a, 128, 96), supersample=2) for a in (case.source, case.target))
    truth = Truth.of(before, after)
    source = torch.from_numpy(before.image).float() / 255
    nothing = picture_and_judge(source, source, truth, judge, case.target)
    done = picture_and_judge(truth.image, source, truth, judge, case.target)
    assert nothing["edit_gain_db"] == 0 and nothing["kept_psnr_db"] == 100 and nothing["accuracy"] == 0
    assert done["edit_gain_db"] > 60 and done["structure"] == 1 and done["edit_truth_ssim"] > 0.999
    assert done["kept_psnr_db"] > 30  # the truth differs a little outside the region, by less than is seen


def test_the_judge_knows_held_out_renders(judge):
    assert held_out_accuracy(judge, range(HELD_OUT_SEED + 900_000, HELD_OUT_SEED + 900_060)) > 0.9
    cat = Attributes.sample(7).edited(species="cat")
    image = torch.from_numpy(render(build_scene(cat, 252, 189)).image).permute(2, 0, 1)[None].float() / 255
    assert agrees(judge, image, labels(cat)).tolist() == [True]
    assert agrees(judge, image, labels(cat.edited(species="mug"))).tolist() == [False]


def test_labels_are_of_what_is_shown():
    rose = Attributes(1, "flower", "rose", "red", "sky")
    assert set(labels(rose)) == {"species", "color"} and set(labels(rose.edited(species="cat"))) == {"species"}
    assert set(labels(rose.edited(species="mug"))) == {"species", "color", "material"}
    assert set(labels(rose.edited(species="mug", material="metal"))) == {"species", "material"}


# --- Other looks: what the prompt leaves open ---

LOOKS = {"another_look", "best_look", "average_look"}


def shown(attributes, look=None, width=64, height=48):
    """A view as (H, W, 3) in [0, 1], and its render."""
    view = render(build_scene(attributes, width, height, look=look))
    return torch.from_numpy(view.image).float() / 255, view


@pytest.mark.parametrize("species", [*ANIMALS, *OBJECTS])
@pytest.mark.parametrize("seed", [4_000_001, 4_000_002, 4_000_003])
def test_another_look_is_the_same_scene_in_another_coat(species, seed):
    for material in ("plastic",) if species in ANIMALS else ("wooden", "metal"):
        target = Attributes.sample(seed).edited(species=species, material=material)
        picture, view = shown(target)
        others = [shown(target, look) for look in other_looks(target)[:3]]
        assert torch.equal(shown(target, look=seed)[0], picture)
        for other, again in others:
            assert np.array_equal(again.parts, view.parts) and np.array_equal(again.depth, view.depth)
            differs = (other != picture).any(-1).numpy()
            padded = np.pad(view.subject, 1)  # renders are softened by a pixel
            near = np.any([padded[i : i + 48, j : j + 64] for i in range(3) for j in range(3)], 0)
            assert differs.mean() > 0.5 * view.subject.mean() and not (differs & ~near).any()
        assert not torch.equal(others[0][0], others[1][0])


def test_looks_differ_in_more_than_their_tone():
    def of_subject(species, **material):
        target = Attributes.sample(4_000_001).edited(species=species, **material)
        picture, view = shown(target)
        return [
            p[torch.from_numpy(view.subject)] for p in (picture, *(shown(target, k)[0] for k in other_looks(target)))
        ]

    hues = [(dog.mean(0)[0] / dog.mean(0)[2]).item() for dog in of_subject("dog")]
    assert max(hues) > 1.3 * min(hues)  # golden and brown
    cow, *others = of_subject("cow")
    assert all(((cow.mean(1) > 0.3) != (other.mean(1) > 0.3)).float().mean() > 0.05 for other in others)  # patches
    ball, *others = (wood / wood.mean(0) for wood in of_subject("ball", material="wooden"))
    assert all((ball - other).abs().mean() > 0.03 for other in others)  # grain


def test_a_flower_has_no_other_look():
    for species in FLOWERS:
        flower = Attributes.sample(4_000_001).edited(species=species)
        assert torch.equal(shown(flower, look=5)[0], shown(flower)[0])


def test_looks_are_drawn_where_the_prompt_names_no_colour():
    for task in ("color", "species"):
        assert all(other_looks(case.target) == [] for case in cases(task, 20))
    seeds = [
        seed for task in ("material", "cat-dog", "cat-cow") for c in cases(task, 20) for seed in other_looks(c.target)
    ]
    assert len(set(seeds)) == len(seeds) == 3 * 20 * 16  # no two scenes share a coat


def test_figures_of_looks_by_hand(judge):
    everywhere = torch.ones(24, 32, dtype=torch.bool)
    at = partial(torch.full, (24, 32, 3))
    # Two views whose source is 0.4 off the truth; one look is 0.2 off, the other 0.3 the other way.
    views = [(at(v - 0.4), Truth(at(v), everywhere, everywhere)) for v in (0.5, 0.6)]
    near, far = [at(0.7), at(0.8)], [at(0.2), at(0.3)]
    figures = looks.look_figures([far, near], views, judge, cases("cat-cow", 1)[0].target)
    gain = lambda off: 20 * math.log10(0.4 / off)  # noqa: E731
    assert set(figures) == LOOKS
    assert figures["another_look"]["edit_gain_db"] == pytest.approx((gain(0.2) + gain(0.3)) / 2, abs=1e-3)
    assert figures["best_look"]["edit_gain_db"] == pytest.approx(gain(0.2), abs=1e-3)
    assert figures["average_look"]["edit_gain_db"] == pytest.approx(gain(0.05), abs=1e-3)
    assert math.isnan(figures["another_look"]["kept_psnr_db"])  # all is changed: nothing is kept


def test_looks_of_an_image_are_the_true_edits_in_other_coats(judge, monkeypatch):
    monkeypatch.setattr(looks, "decoded", lambda view, prior: torch.from_numpy(view.image).float() / 255)
    case = cases("cat-cow", 1)[0]
    source, target = (render(build_scene(a)) for a in (case.source, case.target))
    truth, before = Truth.of(source, target), torch.from_numpy(source.image).float() / 255
    others = [render(build_scene(case.target, look=seed)).image for seed in other_looks(case.target)]
    rows = [picture_and_judge(torch.from_numpy(o).float() / 255, before, truth, judge, case.target) for o in others]
    found = looks.image_looks(case, None, judge)
    for key in ("edit_gain_db", "kept_psnr_db", "structure", "accuracy"):
        assert found["another_look"][key] == pytest.approx(np.mean([row[key] for row in rows]))
    assert found["best_look"]["edit_gain_db"] == max(row["edit_gain_db"] for row in rows)
    assert looks.image_looks(cases("color", 1)[0], None, judge) == {}


def test_looks_of_a_field_are_seen_by_its_held_out_cameras(tmp_path, judge):
    case = cases("cat-cow", 1)[0]
    write_capture(tmp_path / "cat", case.source, views=9, width=64, height=48)
    config = load_config("edit", [f"capture={tmp_path / 'cat'}", "edit.width=48", *TINY_SCENE])
    config.src, config.tgt = case.src, case.tgt
    found = looks.field_looks(config)
    world = WorldCapture.read(tmp_path / "cat")
    rows = []
    for name in ("view000", "view008"):  # every eighth
        camera = world.cameras[name].resized(48, 36)
        seen = lambda a, look=None, c=camera: render(build_scene(a, 48, 36, look=look), c, supersample=2)  # noqa: E731
        source, truth = seen(case.source), Truth.of(seen(case.source), seen(case.target))
        for look in other_looks(case.target):
            other, before = (torch.from_numpy(v.image).float() / 255 for v in (seen(case.target, look), source))
            rows.append(picture_and_judge(other, before, truth, judge, case.target)["edit_gain_db"])
    assert found["another_look"]["edit_gain_db"] == pytest.approx(np.mean(rows))
    assert found["best_look"]["edit_gain_db"] == pytest.approx(np.add(rows[:16], rows[16:]).max() / 2)
    config.tgt = "a red mug"
    assert looks.field_looks(config) == {}
    config.tgt = "a green fox"
    with pytest.raises(UserError, match="no true edit towards"):
        looks.field_looks(config)


def test_bounds_alone_are_reported_where_something_is_left_open(tmp_path, monkeypatch, tiny_folder, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fields, "write_capture", partial(write_capture, views=8, width=64, height=48))
    bench = ["tasks=[color,cat-cow]", "cases=2", "fields=[color,cat-cow]", "field_cases=1", "objectives=[bounds]"]
    options = ",".join(f'"{o}"' for o in (f"guidance.path={tiny_folder}", "edit.width=48", TINY_SCENE[0]))
    assert run_command("bench", [*bench, "jobs=1", "threads=1", f"options=[{options}]"]) == 0
    result = json.loads((tmp_path / "outputs" / "bench" / "edits.json").read_text())
    assert result["summary"] == {} and result["runs"] == []
    assert {task: set(rows) for task, rows in result["bounds"].items()} == {
        "color": {"unedited", "truth"},
        "cat-cow": {"unedited", "truth", *LOOKS},
        "field-cat-cow": LOOKS,
    }
    cow = result["bounds"]["cat-cow"]
    assert cow["another_look"]["cases"] == 2 and cow["best_look"]["edit_gain_db"] > cow["another_look"]["edit_gain_db"]
    assert [run["task"] for run in result["bounds_runs"]] == ["color"] * 2 + ["cat-cow"] * 2 + ["field-cat-cow"]
    assert not (tmp_path / "outputs" / "captures" / "held-out-color-000").exists()  # no bound, so no capture
    table = capsys.readouterr().out
    assert "| cat-cow | (another look) | 2 |" in table and "| field-cat-cow | (best look) | 1 |" in table


def test_a_field_is_edited_before_its_bounds_are_taken(tmp_path):
    sizes = {"tasks": [], "cases": 1, "fields": ["cat", "cat-cow", "color"], "field_cases": 1, "seeds": 2}
    settings = sizes | {"objectives": ["cds", "bounds"], "baselines": [], "tuning": False, "options": []}
    runs = bench_run._plan(settings, tmp_path, "cpu")
    of = {task: [r.objective for r in runs if r.task == f"field-{task}"] for task in sizes["fields"]}
    assert of == {"cat": ["cds", "cds", "bounds"], "cat-cow": ["cds", "cds", "bounds"], "color": ["cds", "cds"]}
    assert bench_run._first(runs[0], runs) is None and bench_run._first(runs[2], runs) == runs[0].path


# --- Statistics by hand ---


def test_interval_by_hand():
    # 4, 6: mean 5, standard error 1, t of one degree of freedom 12.71. 1, 2, 3: standard error 1 / sqrt(3), t 4.303.
    assert report.interval([4.0, 6.0]) == pytest.approx((5 - 12.71, 5 + 12.71))
    assert report.interval([1.0, 2.0, 3.0]) == pytest.approx((2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5))
    assert all(math.isnan(v) for v in report.interval([3.0]))


def test_intervals_cover_the_mean_as_often_as_they_say():
    rng = np.random.default_rng(0)
    inside = [low < 5 < high for low, high in (report.interval(rng.normal(5, 1, 4).tolist()) for _ in range(1000))]
    assert 0.93 < np.mean(inside) < 0.97


def test_proportion_interval_by_hand():
    # Wilson, 10 of 10: (1 + z^2 / 20 -+ z^2 / 20) / (1 + z^2 / 10) with z = 1.96.
    low, high = report.proportion_interval([1.0] * 10)
    assert low == pytest.approx(1 / (1 + 0.1 * 1.96**2)) and high == pytest.approx(1)
    low, high = report.proportion_interval([0.0, 1.0] * 8)
    assert low + high == pytest.approx(1) and 0.25 < low < 0.3


def run(objective, gains, kept, task="color", case=0):
    stages = [
        {"iteration": i, "edit_gain_db": g, "kept_psnr_db": k, "structure": 0.5}
        for i, (g, k) in enumerate(zip(gains, kept))
    ]
    figures = {k: v for k, v in stages[-1].items() if k != "iteration"}
    return {"task": task, "case": case, "seed": 0, "objective": objective, "figures": figures, "stages": stages}


def test_summary_by_hand():
    runs = [run("cds", [1, 3], [40, 30]), run("cds", [1, 5], [40, 34], case=1), run("dds", [2, 8], [30, 20])]
    summary = report.summarise(runs)["color"]
    assert summary["cds"]["edit_gain_db"] == 4 and summary["cds"]["cases"] == 2
    assert summary["cds"]["edit_gain_db_ci"] == [4 - 12.71, 4 + 12.71]
    assert summary["dds"]["kept_psnr_db"] == 20 and "kept_psnr_db_ci" not in summary["dds"]
    twice = [*runs, {**run("cds", [1, 7], [40, 34]), "seed": 1}]  # a case's seeds count as one: (3 + 7) / 2 and 5
    assert report.summarise(twice)["color"]["cds"]["edit_gain_db"] == 5
    assert (
        report.summarise(twice)["color"]["cds"]["runs"] == 3 and report.summarise(twice)["color"]["cds"]["cases"] == 2
    )
    seeds = [
        run("cds", [1, g], [40, 30]) | {"seed": k} for k, g in enumerate((3, 5))
    ]  # of one case: they are what varies
    alone = report.summarise(seeds)["color"]["cds"]
    assert alone["cases"] == 1 and alone["runs"] == 2 and alone["edit_gain_db_ci"] == [4 - 12.71, 4 + 12.71]
    runs[0]["figures"]["edit_gain_db"] = math.nan
    assert report.summarise(runs)["color"]["cds"]["edit_gain_db"] == 5  # what has no value is left out
    assert report.curves(runs)["color"]["cds"][0]["kept_psnr_db"] == 40


def test_a_pool_of_several_tasks_counts_its_scenes_and_not_their_seeds():
    runs = [run("cds", [g], [40], "flower") | {"seed": k, "pool": "all"} for k, g in enumerate((9, 10, 11))]
    runs += [run("cds", [g], [40], "color", case) | {"seed": 0, "pool": "all"} for case, g in enumerate((0, 1, 2))]
    row = report.summarise(runs)["all"]["cds"]
    assert row["edit_gain_db"] == pytest.approx((10 + 0 + 1 + 2) / 4) and row["cases"] == 4 and row["runs"] == 6


def test_intervals_of_many_values_are_never_too_narrow():
    for n, t in ((32, 2.040), (45, 2.015), (100, 1.984), (500, 1.965)):
        values = [0.0, 1.0] * (n // 2) + [0.5] * (n % 2)
        half = (report.interval(values)[1] - report.interval(values)[0]) / 2
        exact = t * float(np.std(values, ddof=1)) / math.sqrt(n)
        assert exact <= half < 1.02 * exact


def test_seeds_of_a_case_count_once_at_equal_progress():
    runs = [
        run(name, [1, 4], [40, kept - less * (name == "dds")], case=case) | {"seed": seed}
        for case, less in ((0, 1), (1, 3))
        for seed, kept in ((0, 30), (1, 31), (2, 32))
        for name in ("cds", "dds")
    ]
    row = report.equal_progress(runs)["color"]
    assert row["cases"] == 2 and row["kept_db"] == 2 and row["kept_db_ci"] == [2 - 12.71, 2 + 12.71]


def test_equal_progress_by_hand():
    # CDS reaches 4 dB in the end; DDS passes 4 dB half way between 2 and 6, where it keeps 25.
    runs = [run("cds", [1, 4], [40, 30]), run("dds", [2, 6, 7], [30, 20, 10])]
    row = report.equal_progress(runs)["color"]
    assert row["cases"] == 1 and row["gain_db"] == 4 and row["kept_db"] == 30 - 25
    nothing = report.equal_progress([run("cds", [-1, 0], [40, 30]), run("dds", [1, 2], [30, 20])])["color"]
    assert nothing["cases"] == 0 and nothing["left_out"] == 1 and "kept_db" not in nothing


def test_methods_less_cds_scene_by_scene():
    cds = [run("cds", [g], [k], task, case) for task, case, g, k in (("color", 0, 3, 30), ("color", 1, 9, 40))]
    dds = [run("dds", [g], [k], task, case) for task, case, g, k in (("color", 0, 2, 31), ("color", 1, 6, 39))]
    less = report.paired([*cds, *dds])
    row = less["color"]["dds"]
    assert list(less) == ["color"] and list(less["color"]) == ["dds"] and row["cases"] == 2
    assert row["edit_gain_db"] == -2 and row["kept_psnr_db"] == 0 == row["structure"]
    assert row["edit_gain_db_ci"] == [-2 - 12.71, -2 + 12.71]  # of -1 and -3: the scenes' own spread is gone
    both = [run("cds", [1], [20], "material"), run("dds", [5], [20], "material"), run("sds", [9], [9], "material", 3)]
    less = report.paired([*cds, *dds, *both])
    assert list(less) == ["color", "material", "all images"] and "sds" not in less["material"]
    of_all = less["all images"]["dds"]
    assert of_all["cases"] == 3 and of_all["edit_gain_db"] == 0  # of -1, -3 and 4
    assert report.paired(dds) == {}
    text = report.table(report.summarise(cds + dds), {}, {}, report.paired([*cds, *dds]))
    assert "| color | dds | 2 | -2.0 ±12.7 | 0.0 ±12.7 | 0.00 ±0.00 |" in text


def test_images_and_fields_of_one_scene_and_tuned_scenes_are_not_pooled():
    tasks = {"color": -1, "material": -3, "field-color": 4, "field-material": 6, "field-flower": 90}
    runs = [run("cds", [0], [30], task) for task in tasks] + [run("dds", [g], [30], task) for task, g in tasks.items()]
    less = report.paired(runs)
    assert list(less) == [*tasks, "all images", "all fields"]
    assert less["all images"]["dds"]["edit_gain_db"] == -2 and less["all fields"]["dds"]["edit_gain_db"] == 5
    assert less["all images"]["dds"]["cases"] == less["all fields"]["dds"]["cases"] == 2
    assert list(report.paired([r for r in runs if r["task"] in ("color", "field-color")])) == ["color", "field-color"]


def test_gains_that_were_passed_unseen_or_never_reached_have_no_figure():
    stages = run("cds", [3, 5], [40, 30])["stages"]
    assert report.at_gain(stages, 4, "kept_psnr_db") == 35
    assert report.at_gain(stages, 2, "kept_psnr_db") is None  # what was kept on the way to 3 is not known
    assert report.at_gain(stages, 6, "kept_psnr_db") is None
    hasty = report.equal_progress([run("cds", [1, 2], [40, 30]), run("dds", [3, 4], [30, 20])])["color"]
    assert hasty == {"cases": 0, "left_out": 1}


def test_a_cell_shows_the_mean_and_half_of_the_interval():
    row = {"gain_db": 5.0, "gain_db_ci": (4.0, 6.0), "kept_db": 30.0}
    assert report.cell(row, "gain_db", 1) == "5.0 ±1.0"
    share = {"accuracy": 1.0, "accuracy_ci": report.proportion_interval([1.0] * 3)}
    assert report.cell(share, "accuracy", 2) == "1.00 (0.44 to 1.00)"
    assert report.cell(row, "kept_db", 2) == "30.00"
    assert report.cell(row, "structure", 2) == ""

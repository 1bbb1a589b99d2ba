"""The benchmark of images: what is to be done, figures of an edit, the table and the sheet."""

import json

import numpy as np
import pytest
import torch
from judges import save_clip, save_dino, save_trunk
from PIL import Image

from cds3d.bench import report
from cds3d.bench.image_runs import claim, folder_items, plan
from cds3d.bench.image_table import COLUMNS, Judges, check_judges, judge_all, load_judges, sheet, table
from cds3d.bench.image_table import table_figures as figures_of
from cds3d.bench.items import Item, picture
from tensorf.errors import UserError

CPU = torch.device("cpu")


def save_picture(path, color=(200, 30, 60), size=(40, 36)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)
    return path


@pytest.fixture(scope="module")
def judge_paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("judges")
    return str(save_clip(folder / "clip")), str(save_dino(folder / "dino")), str(save_trunk(folder / "a.pth", "alex"))


# --- What is to be done


def test_the_pictures_of_a_folder_by_name(tmp_path):
    for name in ("b.png", "a.JPG", ".hidden.png"):
        save_picture(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    items = folder_items(tmp_path, " a cat ", "a dog")
    assert [(i.name, i.path.name, i.src, i.tgt) for i in items] == [
        ("a", "a.JPG", "a cat", "a dog"),
        ("b", "b.png", "a cat", "a dog"),
    ]


def test_folders_that_cannot_be_edited(tmp_path):
    with pytest.raises(UserError, match="nowhere: no such folder"):
        folder_items(tmp_path / "nowhere", "a cat", "a dog")
    with pytest.raises(UserError, match="has no images"):
        folder_items(tmp_path, "a cat", "a dog")
    with pytest.raises(UserError, match="--tgt is missing"):
        folder_items(tmp_path, "a cat", " ")
    save_picture(tmp_path / "a.png"), save_picture(tmp_path / "a.jpg")
    with pytest.raises(UserError, match="one name"):
        folder_items(tmp_path, "a cat", "a dog")


def test_options_go_to_the_methods_that_have_them():
    chosen = plan(["cds", "dds"], [], ["objective.weight=6.0", "edit.iterations=2", "guidance=sd14"])
    assert chosen["cds"] == [
        *("objective=cds", "edit=latent", "guidance=sd14"),
        *("objective.weight=6.0", "edit.iterations=2"),
    ]
    assert chosen["dds"] == ["objective=dds", "edit=latent", "guidance=sd14", "edit.iterations=2"]
    assert plan(["dds"], [], ["edit=pixels"])["dds"] == ["objective=dds", "edit=pixels"]


def test_a_baseline_is_an_option_of_the_command(monkeypatch):
    from cds3d.bench import image_runs

    asked = []
    load = image_runs.load_config

    def remember(command, options):
        asked.append(options[0])
        return load(command, [o for o in options if not o.startswith("baseline=")])

    monkeypatch.setattr(image_runs, "load_config", remember)
    assert plan([], ["sdedit"], [])["sdedit"] == ["baseline=sdedit", "edit=latent"]
    assert asked[0] == "baseline=sdedit"


@pytest.mark.parametrize(
    "methods, baselines, options, text",
    [
        (["cds", "magic"], [], [], "--methods: magic is unknown; use some of cds,csd,dds,ids,ids-cds,nfsd"),
        (["cds"], ["magic"], [], "--baselines: magic is unknown; use some of ddpm-inversion,"),
        ([], [], [], "no method is given"),
        (["cds", "cds"], [], [], "cds is given twice"),
        (["cds"], [], ["tgt=x"], "benchmark's own"),
        (["cds"], [], ["objective=dds"], "benchmark's own"),
        (["dds"], [], ["objective.weight=6"], "unknown option objective.weight"),
        (["dds"], [], ["edit.speed=6"], "unknown option edit.speed"),
        (["dds"], [], ["device=tpu"], "device=tpu cannot be used"),
        (["dds"], [], ["fast"], "neither a flag nor key=value"),
    ],
)
def test_wrong_methods_and_options(methods, baselines, options, text):
    with pytest.raises(UserError) as error:
        plan(methods, baselines, options)
    assert text in str(error.value)


def test_a_folder_goes_on_with_its_own_prompts_and_options_only(tmp_path):
    for name in ("a", "b"):
        save_picture(tmp_path / f"{name}.png")
    item, chosen = Item("a", tmp_path / "a.png", "a cat", "a dog"), {"dds": ["objective=dds", "threads=1"]}
    output = tmp_path / "out"
    claim(output, [item], chosen)
    claim(output, [item], {"dds": ["objective=dds", "threads=2"]})  # where it runs changes nothing
    more = Item("b", tmp_path / "b.png", "a cat", "a cow")
    claim(output, [more], {"cds": ["objective=cds"]})  # images and methods may come later
    with pytest.raises(UserError, match="a dog.*for a, not.*a pig"):
        claim(output, [Item("a", item.path, "a cat", "a pig")], chosen)
    with pytest.raises(UserError, match="begun with .* for dds"):
        claim(output, [item], {"dds": ["objective=dds", "edit.lr=1.0"]})
    assert json.loads((output / "settings.json").read_text())["prompts"].keys() == {"a", "b"}
    foreign = save_picture(tmp_path / "foreign" / "a.png").parent
    with pytest.raises(UserError, match="is not a benchmark's folder"):
        claim(foreign, [item], chosen)


# --- Figures


def test_figures_of_an_edit(judge_paths):
    judges = load_judges(*judge_paths, CPU)
    torch.manual_seed(0)
    source, edited = torch.rand(2, 40, 48, 3)
    item = Item("a", None, "a cat", "a dog")
    figures = figures_of(item, source, edited, judges)
    before, after = judges.clip.image(source).numpy(), judges.clip.image(edited).numpy()
    src, tgt = (judges.clip.text(t).numpy() for t in ("a cat", "a dog"))
    assert figures["accuracy"] == float(after @ tgt > after @ src)
    assert figures_of(Item("a", None, "a dog", "a cat"), source, edited, judges)["accuracy"] == 1 - figures["accuracy"]
    assert figures["clip_score"] == pytest.approx(after @ tgt, abs=1e-5)
    moved, meant = after - before, tgt - src
    expected = moved @ meant / np.linalg.norm(moved) / np.linalg.norm(meant)
    assert figures["clip_direction"] == pytest.approx(expected, abs=1e-4)
    assert figures["structure_distance"] == judges.dino.structure_distance(edited, source)
    assert figures["lpips"] == judges.lpips.distance(edited, source)
    assert figures["psnr_to_source_db"] == pytest.approx(
        -10 * np.log10(((edited - source) ** 2).mean().item()), abs=1e-3
    )


def test_what_has_no_weights_is_left_out_and_told(judge_paths, tmp_path):
    none = load_judges(None, None, None, CPU)
    assert [line.split(":")[0] for line in none.missing] == ["CLIP figures", "the structure distance", "LPIPS"]
    assert all("give --" in line for line in none.missing)
    assert figures_of(Item("a", None, "x", "y"), torch.zeros(40, 40, 3), torch.ones(40, 40, 3), none) == {
        "psnr_to_source_db": 0
    }
    (tmp_path / "torn.pth").write_bytes(b"torn")
    one = load_judges(judge_paths[0], judge_paths[0], str(tmp_path / "torn.pth"), CPU)
    assert one.clip is not None and one.dino is None and one.lpips is None
    assert "is not a ViTModel" in one.missing[0] and "cannot be read" in one.missing[1]
    assert one.named("c", "d", "l") == {"clip": "c", "dino": None, "lpips": None}


def test_paths_that_lead_nowhere_are_told_before_the_edits(judge_paths, tmp_path):
    check_judges(*judge_paths)
    check_judges("openai/clip-vit-large-patch14", None, None)
    for given in ((str(tmp_path / "none"), None, None), (None, "./none", None), (None, None, "none.pth")):
        with pytest.raises(UserError, match="no such f"):
            check_judges(*given)


def test_pictures_are_read_upright_and_resized(tmp_path):
    path = save_picture(tmp_path / "a.png", size=(40, 20))
    assert picture(path).shape == (20, 40, 3)
    assert picture(path, (10, 20)).shape == (10, 20, 3)
    assert picture(path)[0, 0].tolist() == pytest.approx([200 / 255, 30 / 255, 60 / 255])


def finished(output, method, name, color, seconds):
    save_picture(output / method / name / "edited.png", color, (20, 18))
    metrics = {"seconds": seconds, "peak_memory_mb": 300.0, "device": "cpu"}
    (output / method / name / "metrics.json").write_text(json.dumps(metrics))


def test_finished_edits_are_judged_at_their_own_size_and_the_rest_is_listed(tmp_path):
    output = tmp_path / "out"
    items = [Item(n, save_picture(tmp_path / f"{n}.png"), "a cät", "a 狗") for n in ("a", "b", "c")]
    finished(output, "cds", "a", (200, 30, 60), 2)
    finished(output, "cds", "b", (0, 0, 0), 4)
    finished(output, "dds", "a", (0, 0, 0), 3)
    (output / "dds" / "a" / "edited.png").write_bytes(b"torn")
    runs, failures = judge_all(items, ["cds", "dds"], output, Judges(), figures_of)
    assert [(r["objective"], r["image"], r["case"], r["figures"]["seconds"]) for r in runs] == [
        ("cds", "a", 0, 2),
        ("cds", "b", 1, 4),
    ]
    assert runs[0]["figures"]["psnr_to_source_db"] == 100
    assert [(f.method, f.name) for f in failures] == [("dds", "a")] and "edited.png" in failures[0].reason
    sheet(tmp_path / "sheet.png", items, ["cds", "dds"], output)
    page = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert page.shape == (16 + 3 * (160 + 16), 3 * 160, 3)
    assert page[16 + 16 + 80, 80].tolist() == [200, 30, 60] and page[16 + 16 + 80, 160 + 80].tolist() == [200, 30, 60]
    assert page[16 + 176 + 16 + 80, 160 + 80].tolist() == [0, 0, 0]
    assert page[16 + 16 + 80, 320 + 80].tolist() == [255, 255, 255]  # the torn one


# --- The table


def run(method, case, **figures):
    return {"task": "all", "case": case, "objective": method, "seed": 0, "figures": figures}


def test_table_by_hand():
    runs = [run("cds", k, accuracy=float(k < 8), seconds=10.0 + 2 * (k % 2)) for k in range(10)]
    text = table(report.summarise(runs), COLUMNS)
    header, _, row = text.splitlines()
    assert header == "| method | images | CLIP accuracy | s |"  # nobody has a structure distance
    # Wilson, 8 of 10: from the middle (p + z^2 / 2n) / (1 + z^2 / n) to either side
    # z / (1 + z^2 / n) sqrt(p q / n + z^2 / 4 n^2).
    z, n, p = 1.96, 10, 0.8
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    spread = 2.262 * np.std([10.0, 12] * 5, ddof=1) / np.sqrt(10)
    share = f"0.800 ({middle - half:.3f} to {middle + half:.3f})"
    assert row == f"| cds | 10 | {share} | 11.0 ±{spread:.1f} |"


def test_types_of_edits_have_their_own_rows():
    runs = [run("cds", 0, seconds=1.0) | {"task": "a"}, run("cds", 1, seconds=3.0) | {"task": "b"}]
    summary = report.summarise(runs) | report.summarise([r | {"pool": "overall"} for r in runs])
    text = table(summary, COLUMNS, "type")
    assert [line.split("|")[1].strip() for line in text.splitlines()] == ["type", "---", "a", "b", "overall"]
    assert "| overall | cds | 2 | 2.0 ±" in text


@pytest.mark.parametrize("published", [False, True])
def test_the_authors_of_pie_bench_resized_without_antialiasing(judge_paths, published):
    assert load_judges(*judge_paths, CPU, published=published).dino.antialias is not published

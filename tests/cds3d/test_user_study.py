"""The page of a user study: blind, self-contained; and its count by hand."""

import base64
import io
import json
import re

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from cds3d.bench.items import Item
from cds3d.bench.user_study import check_page, count, key_path, table, write_page
from tensorf.errors import UserError

METHODS = {"cds": (250, 0, 0), "dds": (0, 250, 0), "sdedit": (0, 0, 250)}


def study(folder, images=6, seed=0):
    """A page of edits whose colour tells the method."""
    items, edits = [], []
    for k in range(images):
        source = folder / f"cat{k}.png"
        Image.new("RGB", (40, 30), (90, 90, 90)).save(source)
        items.append(Item(f"cat{k}", source, "a cat", "a <b>dog</script>"))
        edits.append({})
        for method, color in METHODS.items():
            told = PngInfo()
            told.add_text("method", method)
            path = folder / method / f"cat{k}.png"
            path.parent.mkdir(exist_ok=True)
            Image.new("RGB", (40, 30), color).save(path, pnginfo=told)
            edits[-1][method] = path
    page = folder / "study.html"
    return page, write_page(page, items, edits, seed)


def data_of(page):
    return json.loads(re.search(r'<script id="data"[^>]*>(.*?)</script>', page.read_text(), re.DOTALL)[1])


def color_of(uri):
    kind, data = uri.split(",")
    assert kind == "data:image/jpeg;base64"
    data = base64.b64decode(data)
    assert not any(method.encode() in data for method in METHODS)
    return Image.open(io.BytesIO(data)).getpixel((20, 15))


def test_the_page_is_blind_and_the_key_tells_the_truth(tmp_path):
    page, key_file = study(tmp_path)
    assert key_file == key_path(page) == tmp_path / "study.key.json"
    data, key = data_of(page), json.loads(key_file.read_text())
    assert data["study"] == key["study"] and len(data["items"]) == len(key["items"]) == 6
    for item, truth in zip(data["items"], key["items"]):
        assert (item["from"], item["to"]) == ("a cat", "a <b>dog</script>")
        assert color_of(item["source"]) == pytest.approx((90, 90, 90), abs=3)
        for uri, method in zip(item["edits"], truth["methods"], strict=True):
            assert color_of(uri) == pytest.approx(METHODS[method], abs=3)
    orders = {tuple(item["methods"]) for item in key["items"]}
    assert len(orders) > 1 and all(set(order) == METHODS.keys() for order in orders)
    text = re.sub(r"data:image/jpeg;base64,[\w+/=]+", "", page.read_text())
    assert not re.search(r"\b(cds|dds|sdedit)\b", text, re.IGNORECASE)
    assert not re.search(r"cat\d", text)  # nor a file's name
    assert not re.search(r"""(src|href)\s*=\s*["']|https?:|@import""", text)  # nothing is fetched


def test_the_key_of_another_study_is_not_replaced(tmp_path):
    page, key_file = study(tmp_path)
    before = page.read_bytes(), key_file.read_bytes()
    study(tmp_path)  # the same again
    assert (page.read_bytes(), key_file.read_bytes()) == before
    with pytest.raises(UserError, match="another study's key"):
        study(tmp_path, seed=5)
    assert (page.read_bytes(), key_file.read_bytes()) == before


def test_the_seed_sets_the_order(tmp_path):
    orders = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / name).mkdir()
        orders.append(json.loads(study(tmp_path / name, seed=seed)[1].read_text()))
    assert orders[0] == orders[1] and orders[0]["items"] != orders[2]["items"]
    assert orders[0]["study"] != orders[2]["study"]


def test_without_a_seed_nobody_can_tell_the_order_and_the_same_page_comes_again(tmp_path):
    keys = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        keys.append(json.loads(study(tmp_path / name, images=20, seed=None)[1].read_text()))
    assert keys[0]["items"] != keys[1]["items"]
    before = [(tmp_path / "a" / name).read_bytes() for name in ("study.html", "study.key.json")]
    study(tmp_path / "a", images=20, seed=None)  # as `bench_images.py` does when it goes on
    assert [(tmp_path / "a" / name).read_bytes() for name in ("study.html", "study.key.json")] == before


def test_pages_have_to_be_html(tmp_path):
    check_page(tmp_path / "study.html")
    with pytest.raises(UserError, match="end in .html"):
        check_page(tmp_path / "study.json")


# --- Counting


def save_key(folder):
    key = {"study": "s", "seed": 0, "items": [{"image": "a", "methods": ["cds", "dds"]}]}
    key["items"].append({"image": "b", "methods": ["dds", "cds"]})
    (folder / "key.json").write_text(json.dumps(key))
    return folder / "key.json"


def save_answers(folder, participant, *answers, study="s"):
    path = folder / f"{participant}.json"
    rows = [dict(zip(("item", "place", "text", "structure", "quality"), a)) for a in answers]
    path.write_text(json.dumps({"study": study, "participant": participant, "answers": rows}))
    return path


def test_count_by_hand(tmp_path):
    key = save_key(tmp_path)
    # CDS is at place 0 of image 0 and at place 1 of image 1.
    one = save_answers(tmp_path, "one", (0, 0, 5, 4, 3), (0, 1, 1, 1, 1), (1, 0, 3, 1, 1), (1, 1, 3, 4, 5))
    two = save_answers(tmp_path, "two", (0, 0, 2, 2, None), (0, 1, 2, 2, 2))
    summary = count(key, [one, two])
    assert summary.keys() == {"cds", "dds"}
    cds = summary["cds"]
    # Participant one's mean of text is (5 + 3) / 2 = 4, two's is 2: mean 3, standard error 1, t of one degree 12.71.
    assert cds["text"] == 3 and cds["text_ci"] == [3 - 12.71, 3 + 12.71]
    assert cds["structure"] == 3 and cds["quality"] == 4 and "quality_ci" not in cds  # two left it out
    assert cds["participants"] == 2 and cds["answers"] == 8
    assert summary["dds"]["text"] == 2 and summary["dds"]["answers"] == 9
    lines = table(summary).splitlines()
    assert lines[2] == "| cds | 2 | 8 | 3.00 ±12.71 | 3.00 ±12.71 | 4.00 |"
    # Person by person, DDS less CDS: 2 - 4 and 2 - 2 of text, 1 - 4 and 2 - 2 of structure, 1 - 4 of quality.
    assert "less" not in cds and summary["dds"]["less"]["text"] == -1
    assert lines[5] == "Each method less cds, participant by participant:"
    assert lines[9] == "| dds | -1.00 ±12.71 | -1.50 ±19.07 | -3.00 |"


def test_participants_are_those_who_answered_about_the_method(tmp_path):
    key = save_key(tmp_path)
    one = save_answers(tmp_path, "one", (0, 0, 5, 4, 3), (0, 1, 1, 1, 1))
    two = save_answers(tmp_path, "two", (0, 0, 2, 2, 2), (0, 1, None, None, None))
    summary = count(key, [one, two])
    assert summary["cds"]["participants"] == 2 and summary["dds"]["participants"] == 1
    assert summary["dds"]["less"] == {"text": -4, "structure": -3, "quality": -2}  # of the one who saw both


@pytest.mark.parametrize(
    "answers, text",
    [
        ([(0, 0, 6, 1, 1)], "text is 6"),
        ([(0, 0, 0, 1, 1)], "text is 0"),
        ([(0, 0, "5", 1, 1)], "text is 5"),
        ([(0, 0, True, 1, 1)], "text is True"),
        ([(2, 0, 1, 1, 1)], "wrong answer"),
        ([(0, 2, 1, 1, 1)], "wrong answer"),
        ([(-1, 0, 1, 1, 1)], "wrong answer"),
        ([(0, 0, 1, 1, 1), (0, 0, 5, 5, 5)], "item 0, place 0"),
    ],
)
def test_wrong_answers_are_refused(tmp_path, answers, text):
    with pytest.raises(UserError, match="p.json") as error:
        count(save_key(tmp_path), [save_answers(tmp_path, "p", *answers)])
    assert text in str(error.value)


def test_files_that_do_not_belong(tmp_path):
    key, answers = save_key(tmp_path), save_answers(tmp_path, "p", (0, 0, 1, 1, 1))
    with pytest.raises(UserError, match="does not answer the study"):
        count(key, [save_answers(tmp_path, "q", study="t")])
    (tmp_path / "again.json").write_text(answers.read_text())
    with pytest.raises(UserError, match="one participant's"):
        count(key, [answers, tmp_path / "again.json"])
    with pytest.raises(UserError, match="is not a study's key"):
        count(answers, [answers])
    with pytest.raises(UserError, match="no such file"):
        count(tmp_path / "none.json", [answers])
    (tmp_path / "torn.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        count(key, [tmp_path / "torn.json"])
    with pytest.raises(UserError, match="no answers"):
        count(key, [])

"""Contact sheets: every picture is in its place, and labels can be read at the width of a page."""

import numpy as np
import pytest
from PIL import Image

from cds3d.bench import report

SIZE = WIDTH, HEIGHT = 64, 48


def pictures(count, start=0):
    """Pictures of one colour each, none of them white or black."""
    return [Image.new("RGB", SIZE, (40 + start + 10 * k, 90, 160)) for k in range(count)]


def blocks(sheet):
    """(left, top, red) of each picture on the sheet, row by row."""
    pixels = np.asarray(sheet)
    inside = (pixels[..., 1] == 90) & (pixels[..., 2] == 160)
    tops = [y for y in range(sheet.height) if inside[y].any() and not inside[y - 1].any()]
    return [(x, y, int(pixels[y, x, 0])) for y in tops for x in range(0, sheet.width, WIDTH) if inside[y, x]]


def test_a_sheet_of_few_columns_has_one_band_and_one_row_of_headings():
    sheet = report.draw_sheet([("first", pictures(3)), ("second", pictures(3, 5))], ["a", "b", "c"])
    assert sheet.width == 3 * WIDTH
    assert [x for x, _, _ in blocks(sheet)] == 2 * [0, WIDTH, 2 * WIDTH]
    assert [red for _, _, red in blocks(sheet)] == [40, 50, 60, 45, 55, 65]
    bars = sheet.height - 2 * HEIGHT
    without = report.draw_sheet([("", pictures(3)), ("", pictures(3, 5))], ["a", "b", "c"])
    assert bars == 3 * (without.height - 2 * HEIGHT)  # headings and two titles; headings alone


def test_seven_columns_are_wrapped_to_four_and_three():
    sheet = report.draw_sheet([("", pictures(7))], list("abcdefg"))
    assert sheet.width == 4 * WIDTH
    found = blocks(sheet)
    assert [red for _, _, red in found] == [40, 50, 60, 70, 80, 90, 100]
    assert len({top for _, top, _ in found}) == 2
    second = max(top for _, top, _ in found)
    above = np.asarray(sheet)[second - 10 : second]
    assert (above < 128).any()  # headings stand over the second band too


@pytest.mark.parametrize("heading", ["source", "a heading that is far too long for its column"])
def test_letters_are_readable_and_stay_over_their_column(heading):
    rows = [("", [p.resize((256, 192)) for p in pictures(4)])]
    sheet = report.draw_sheet(rows, [heading, "", "", ""])
    dark = (np.asarray(sheet)[: sheet.height - 192] < 128).all(2)
    tall, wide = np.nonzero(dark.any(1))[0], np.nonzero(dark.any(0))[0]
    assert wide.max() < 256
    if heading == "source":
        assert tall.max() - tall.min() >= 0.012 * sheet.width  # a small letter of a font of 2.8%


def test_the_file_is_a_jpeg_or_a_png(tmp_path):
    files = []
    for k, picture in enumerate(pictures(2)):
        files.append(tmp_path / f"{k}.png")
        picture.save(files[-1])
    for name, kind in (("sheet.jpg", "JPEG"), ("sheet.png", "PNG")):
        report.contact_sheet(tmp_path / name, [("a case", files)], ["one", "two"])
        with Image.open(tmp_path / name) as sheet:
            assert sheet.format == kind and sheet.width == 2 * WIDTH

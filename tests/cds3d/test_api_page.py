"""The code on docs/api.md runs as it is written."""

import re
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
PAGE, FLOWER = ROOT / "docs" / "api.md", ROOT / "scenes" / "flower"
WIDTH = 32


def tried(code, changes):
    """The page's code with what is tiny in place of what it shows."""
    for shown, tiny in changes.items():
        assert shown in code
        code = code.replace(shown, tiny)
    return code


def test_the_code_of_the_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options, training, command, edit = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    tiny = [f"scene.width={WIDTH}", "field.iterations=2", "field.batch=64", "edit.iterations=2", "video_frames=0"]
    names = {}
    train = 'load_config("train", ["field.iterations=2", "field.batch=64", "field.resolution=16"])'
    exec(tried(options, {'load_config("train", [])': train}), names)
    assert names["edit"].iterations > 2 and names["training"].iterations == 2
    exec(tried(training, {"my/capture": str(FLOWER), "width=504": f"width={WIDTH}"}), names)
    assert names["picture"].shape[1:] == (WIDTH, 3)
    exec(tried(command, {'["scene=flower"]': repr(["scene=flower", *tiny, "edit.width=32"]), "100": "1"}), names)
    assert "1 of 2" in (told := capsys.readouterr().out) and "resume=true goes on" in told  # of the source's training
    monkeypatch.setattr("cds3d.subjects.given._SEEN", 0.0)  # of a field that has hardly begun
    monkeypatch.setattr("cds3d.export.surface._OPAQUE", 0.0)
    exec(tried(edit, {'["scene=capture"]': '["scene=capture", "edit.iterations=2"]'}), names)
    assert names["editor"].iteration == 2 and not names["edited"].inside(torch.zeros(1, 3) + 9).any()
    assert (tmp_path / "my" / "edited.ply").stat().st_size > 1000 and (tmp_path / "my" / "edited.mp4").exists()

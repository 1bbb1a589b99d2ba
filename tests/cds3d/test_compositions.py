"""Compositions of options are kept: nobody sees what another one changed, and changed files are noticed."""

import shutil

from cds3d import options
from cds3d.options import data_folder, load_config


def test_what_one_program_assigns_another_does_not_see():
    first = load_config("edit", ["edit.lr=0.5"])
    first.edit.lr, first.scene.root = 0.7, "elsewhere"
    second = load_config("edit", ["edit.lr=0.5"])
    assert second.edit.lr == 0.5 and second.scene.root is None


def test_a_file_that_has_changed_is_read_again(tmp_path, monkeypatch):
    configs = shutil.copytree(data_folder("configs"), tmp_path / "configs")
    monkeypatch.setattr(options, "data_folder", lambda name: tmp_path / name)
    preset = configs / "objective" / "dds.yaml"
    assert load_config("edit", ["objective=dds"]).objective.kind == "dds"
    preset.write_text(preset.read_text().replace("kind: dds", "kind: other"))
    assert load_config("edit", ["objective=dds"]).objective.kind == "other"
    shutil.copy(preset, configs / "objective" / "mine.yaml")
    assert load_config("edit", ["objective=mine"]).objective.kind == "other"

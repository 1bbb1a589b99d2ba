"""What needs a GPU: `make test-cuda` runs it. Without one, test_elsewhere.py and test_gpu_check.py stand in."""

import pytest
import torch
from checks import load_script

from cds3d.bench import gpu_agreement
from cds3d.bench.gpu_speed import counted_waits
from cds3d.cli import run_command
from cds3d.editor import Editor

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def test_a_gpu_computes_what_the_cpu_does(tmp_path, tiny_folder, capture_folder):
    options = ["--quick", "--device", "cuda", "--model", str(tiny_folder), "--capture", str(capture_folder)]
    script = load_script("gpu_check")
    assert script.main([*options, "--json", str(tmp_path / "gpu.json"), "--only", *gpu_agreement.PARTS]) == 0


def test_an_edit_of_a_field_waits_as_often_as_was_counted_without_a_gpu(tmp_path, edit_options, trained, monkeypatch):
    counts = []

    def step(self, own=Editor.step):
        with counted_waits() as places:
            result = own(self)
        counts.append(places)
        return result

    monkeypatch.setattr(Editor, "step", step)
    more = ["device=cuda", "edit.region.visits=1", "edit.iterations=8", f"output={tmp_path}/edit", "video_frames=0"]
    assert run_command("edit", [*edit_options, *more]) == 0
    assert all(sum(places.values()) <= 4 for places in counts[5:]), counts[5:]  # test_synchronisations.py


@pytest.mark.parametrize("space", ["ndc", "box"])
def test_a_field_is_trained_edited_resumed_and_rendered(space, tmp_path, train_options, edit_options):
    own = ["device=cuda", f"scene.space={space}", "video_frames=0"]
    assert run_command("train", [*train_options, *own]) == 0
    edit = [*edit_options, *own, f"output={tmp_path}/edit"]
    assert run_command("edit", edit) == 0
    assert run_command("edit", [*edit, "resume=true", "edit.iterations=3"]) == 0
    assert run_command("render", [f"{tmp_path}/edit", "frames=2", "depth=true", "width=32", "device=cuda"]) == 0

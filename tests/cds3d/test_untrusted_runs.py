"""Run folders, sweeps and models that somebody else has made: they are data, and what is more is refused."""

import ast
import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from judges import save_clip, save_dino
from ldm_layout import original_layout
from safetensors.torch import save_file
from test_loading import CPU, _offline, assert_same, message_of
from tiny_models import copy_of, set_json

from cds3d.guidance import load_prior
from cds3d.jobs import Job
from cds3d.metrics.clip import Clip
from cds3d.metrics.dino import Dino
from cds3d.metrics.pretrained import located
from cds3d.options import load_config
from cds3d.runs import RunFolder, read_config
from cds3d.sweep.plan import plan
from tensorf.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
LAUGHS = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)
BAD_YAML = {
    "an environment variable": ('{name: "${oc.env:HOME}"}', r"\$\{oc.env:HOME\}"),
    "a resolver in a prompt": ('{prompt: "a ${oc.decode:x} flower"}', r"\$\{oc.decode"),
    "a resolver in a key": ('{"${oc.env:HOME}": 1}', r"\$\{oc.env"),
    "itself": ("${scene}", r"\$\{scene\}"),
    "a missing value": ('{name: "???"}', r"\?\?\?"),
    "a call": ('{name: !!python/object/apply:os.mkdir ["harm"]}', "constructor"),
    "a name": ("{name: !!python/name:os.system }", "constructor"),
    "an alias": ("&a {b: *a}", "alias"),
    "a billion laughs": ("{}\n" + LAUGHS, "alias"),
    "depth": ("[" * 60 + "]" * 60, "nested"),
    "great depth": ("[" * 100_000 + "]" * 100_000, "nested"),
    "two documents": ("{}\n---\nscene: {}", "document"),
    "a set": ("{a: !!set {x}}", "set"),
    "size": ("{}\n#" + "x" * 2**20, "larger than"),
}


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("text, told", BAD_YAML.values(), ids=BAD_YAML)
def test_a_runs_configuration_is_data(tmp_path, text, told):
    (tmp_path / "config.yaml").write_text(f"scene: {text}\n")
    start = time.monotonic()
    with pytest.raises(UserError, match=rf"config\.yaml is damaged \(.*{told}") as caught:
        read_config(tmp_path)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - start < 3
    assert not (tmp_path / "harm").exists()


def test_a_runs_scene_is_a_mapping(tmp_path):
    for text in ("scene: 5", "scene: [a]", "scene: null", "sceney: {}"):
        (tmp_path / "config.yaml").write_text(text)
        with pytest.raises(UserError, match="another program's"):
            read_config(tmp_path)


def test_what_a_run_writes_is_read(tmp_path):
    config = load_config("edit", ["objective=nfsd", "objective.negative_prompt='a: \"b\" *c &d !e'"])
    config.src, config.tgt = "yes", "花 1e-3: [x]"
    run = RunFolder(tmp_path / "run", config)
    run.begin()
    again = read_config(run.path)
    del again.scene.frames  # of captures alone, and filled in
    assert again == config and again.tgt == config.tgt and again.edit.lr == config.edit.lr


def test_a_run_of_before_there_was_the_option_goes_on(tmp_path):
    config = load_config("edit", ["resume=true"])
    run = RunFolder(tmp_path / "run", config)
    run.begin()
    run.save_state({})
    path = run.path / "config.yaml"
    path.write_text(path.read_text().replace("  outside: false\n", "").replace("  revision: null\n", ""))
    assert RunFolder(run.path, config).resumed


@pytest.mark.parametrize("text", ["edits: &a [x, *a]", 'edits: ["${oc.env:HOME}"]', "edits: !!python/tuple [a]"])
def test_a_sweeps_file_is_data(tmp_path, text):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(UserError, match=r"x\.yaml cannot be read"):
        plan(load_config("sweep", ["file=x.yaml"]), tmp_path)


def test_a_sweep_has_an_end(tmp_path):
    numbers = "[" + ",".join(map(str, range(101))) + "]"
    (tmp_path / "x.yaml").write_text(f"edits: [{','.join(f'a flower {i}' for i in range(100))}]\nseeds: {numbers}")
    with pytest.raises(UserError, match="a sweep of 10,100 edits: give shorter lists, of 10,000"):
        plan(load_config("sweep", ["file=x.yaml"]), tmp_path)


def test_a_runs_state_is_data(tmp_path):
    class Harm:
        def __reduce__(self):
            return (open, (str(tmp_path / "harm"), "w"))

    config = load_config("edit", ["resume=true"])
    run = RunFolder(tmp_path / "run", config)
    run.begin()
    torch.save({"seconds": 0.0, "iteration": Harm()}, run.state_path)
    with pytest.raises(UserError, match=r"state\.pt is damaged"):
        RunFolder(tmp_path / "run", config).load_state()
    assert not (tmp_path / "harm").exists()


def test_progress_that_is_nested_too_deep_is_none(tmp_path):
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "progress.json").write_text("[" * 100_000)
    job = Job.__new__(Job)
    job.folder, job._told_before = tmp_path, None
    assert job.progress() == {}


# --- models


def in_the_cache(cache, folders):
    """A hub's cache of somebody/model. folders: by commit; the first is what "main" is."""
    repository = cache / "models--somebody--model"
    for commit, folder in folders.items():
        shutil.copytree(folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(next(iter(folders)))


def test_a_revision_pins_a_model(tiny_folder, tiny_v_folder, tmp_path, monkeypatch, prior):
    _offline(monkeypatch, tmp_path)
    newest = copy_of(tiny_v_folder, tmp_path / "newest")
    set_json(newest / "model_index.json", _class_name="FluxPipeline")
    in_the_cache(tmp_path, {"c" * 40: newest, "b" * 40: tiny_v_folder, "a" * 40: tiny_folder})
    pinned = load_prior("somebody/model", device=CPU, revision="a" * 40)
    assert pinned.prediction == "epsilon"
    assert_same(pinned, prior)
    assert load_prior("somebody/model", device=CPU, revision="b" * 40).prediction == "v_prediction"
    assert "is Flux" in message_of("somebody/model")
    text = message_of("somebody/model", revision="d" * 40)
    assert f"at revision {'d' * 40}" in text and f"--revision {'d' * 40} --local-dir" in text


def test_a_revision_of_a_single_files_configuration(tiny_folder, tmp_path, monkeypatch):
    pipeline, asked = StableDiffusionPipeline.from_pretrained(tiny_folder, safety_checker=None), []
    save_file(original_layout(pipeline), tmp_path / "model.safetensors")
    real = AutoencoderKL.from_single_file, StableDiffusionPipeline.from_single_file

    def here(load):  # as if the hub had the folder
        def loaded(*args, config, revision, **more):
            asked.append((config, revision))
            return load(*args, config=str(tiny_folder), **more)

        return loaded

    monkeypatch.setattr(AutoencoderKL, "from_single_file", here(real[0]))
    monkeypatch.setattr(StableDiffusionPipeline, "from_single_file", here(real[1]))
    options = {"config": "somebody/model", "device": CPU, "revision": "a" * 40}
    load_prior(str(tmp_path / "model.safetensors"), **options)
    assert asked == [("somebody/model", "a" * 40)] * 2


def test_a_revision_of_a_folder_would_pin_nothing(tiny_folder, tmp_path):
    assert "leave it out" in message_of(tiny_folder, revision="main")
    assert "leave it out" in message_of("pocket", revision="main")
    assert "guidance.config=null is not" in message_of("model.safetensors", revision="main")


@pytest.mark.parametrize("component", ["unet", "text_encoder", None])
def test_pipelines_that_bring_code_do_not_run_it(tiny_folder, tmp_path, monkeypatch, component):
    """diffusers runs a folder's own classes where trust_remote_code is on."""
    folder, cache = copy_of(tiny_folder, tmp_path / "copy"), tmp_path / "cache"
    code = f"open({str(tmp_path / 'harm')!r}, 'w')\nclass Mine: pass\n"
    (folder / (component or ".") / "mine.py").write_text(code)
    index = json.loads((folder / "model_index.json").read_text())
    index["_class_name" if component is None else component] = ["mine", "Mine"]
    (folder / "model_index.json").write_text(json.dumps(index))
    cache.mkdir()
    _offline(monkeypatch, cache)
    in_the_cache(cache, {"a" * 40: folder})
    for path in ("somebody/model", str(folder)):
        if component is None:
            assert "['mine', 'Mine'], which is not supported" in message_of(path)
        else:
            load_prior(path, device=CPU)  # networks are of the classes that are known, whatever the folder says
    assert not (tmp_path / "harm").exists()


def test_networks_that_bring_code_do_not_run_it(tiny_folder, tmp_path):
    """transformers runs the class that "auto_map" names where trust_remote_code is on."""
    folder = copy_of(tiny_folder, tmp_path / "copy")
    for part, kind in (("text_encoder", "AutoModel"), ("tokenizer", "AutoTokenizer")):
        (folder / part / "mine.py").write_text(f"open({str(tmp_path / 'harm')!r}, 'w')\nclass Mine: pass\n")
        path = folder / part / ("config.json" if part == "text_encoder" else "tokenizer_config.json")
        path.write_text(json.dumps({**json.loads(path.read_text()), "auto_map": {kind: "mine.Mine"}}))
    load_prior(str(folder), device=CPU)
    assert not (tmp_path / "harm").exists()


def test_a_revision_pins_a_judge(tmp_path, monkeypatch):
    _offline(monkeypatch, tmp_path)
    save_dino(tmp_path / "dino")
    in_the_cache(tmp_path, {"b" * 40: save_clip(tmp_path / "clip"), "a" * 40: tmp_path / "dino"})
    Dino(f"somebody/model@{'a' * 40}", CPU)
    Clip("somebody/model", CPU)
    Clip(f"somebody/model@{'b' * 40}", CPU)
    with pytest.raises(UserError, match="hf download somebody/model --revision cc --local-dir"):
        Clip("somebody/model@cc", CPU)


def test_folders_have_no_revision(tmp_path):
    (tmp_path / "a@b").mkdir()
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner" / "name@b").mkdir()
    for path in ("a@b", "owner/name@b", "somebody/model"):
        assert located(path) == {"pretrained_model_name_or_path": path}
    assert located("somebody/model@b") == {"pretrained_model_name_or_path": "somebody/model", "revision": "b"}


# --- the code


def calls():
    """(file:line, dotted name, keywords) of every call in the package and its scripts."""
    for folder in ("tensorf", "cds3d", "scripts", "examples", "."):
        for path in sorted((ROOT / folder).glob("*.py" if folder == "." else "**/*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call):
                    keywords = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", ast.unparse(node.func), keywords


def test_no_call_runs_what_a_file_says():
    """Pickles, Python's YAML tags, code of models, shells, eval: the package has no use for them."""
    found, loads = list(calls()), 0
    for place, name, keywords in found:
        assert "trust_remote_code" not in keywords and not keywords.get("shell"), place
        assert not keywords.get("allow_pickle") or name == "np.save", place  # campaigns write what has to be refused
        assert name not in ("eval", "exec", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load"), place
        assert name.split(".")[0] not in ("pickle", "marshal", "shelve", "tarfile", "zipfile"), place
        assert not name.endswith("unpack_archive"), place
        if name == "torch.load":
            loads += 1
            assert keywords.get("weights_only") is True, place
        if name == "np.load":
            assert keywords.get("allow_pickle") is False or "world" in place or "training" in place, place
    assert loads >= 4 and len(found) > 3000

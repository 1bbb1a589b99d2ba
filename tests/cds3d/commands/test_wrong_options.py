"""Options that are wrong: one line that says so, and nothing is written."""

import pytest
import torch
from checks import fails, files

from cds3d.cli import run_command
from cds3d.commands.preparing import warn_of_options_of_other_objectives, warn_of_photographs
from cds3d.options import load_config


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("edit.iteration=5", ["unknown option edit.iteration", "--help"]),
        ("nonsense=1", ["unknown option nonsense"]),
        ("objective=hds", ["objective=hds", "cds, csd, dds, ids, ids-cds"]),
        ("guidance=sd3", ["guidance=sd3", "pocket, sd14, sd15, sd21"]),
        ("edit=fast", ["edit=fast", "field, latent, pictures, pixels, published"]),
        ("edit.iterations=abc", ["edit.iterations=abc"]),
        ("edit.iterations=1.5", ["iterations=1.5", "whole number"]),
        ("edit.iterations=-1", ["edit.iterations=-1"]),
        ("edit.iterations=0", ["edit.iterations=0"]),
        ("edit.lr=-0.1", ["edit.lr=-0.1"]),
        ("edit.lr=nan", ["edit.lr=nan"]),
        ("objective.kind=hds", ["objective.kind=hds", "cds", "nfsd"]),
        ("edit.lr_decay=0", ["lr_decay=0", "at most 1"]),
        ("edit.color_lr=-1", ["edit.color_lr=-1"]),
        ("edit.density_lr=-1", ["edit.density_lr=-1"]),
        ("edit.network_lr=fast", ["edit.network_lr=fast"]),
        ("edit.width=-5", ["edit.width=-5"]),
        ("edit.width=wide", ["edit.width=wide"]),
        ("edit.optimizer=lion", ["edit.optimizer=lion", "adam, sgd"]),
        ("guidance.scale=-7", ["guidance.scale=-7"]),
        ("guidance.dtype=fp8", ["guidance.dtype=fp8", "fp32, bf16, fp16"]),
        ("objective.weight=-3", ["weight=-3"]),
        ("objective.weight=inf", ["weight=inf"]),
        ("objective.scale=nan", ["objective.scale=nan"]),
        ("objective.features=mid", ["mid", "self, cross or score"]),
        ("objective.patch_sizes=[1,a]", ["patch_sizes=a"]),
        ("objective.patch_sizes=[]", ["patch_sizes=[]", "whole numbers of at least 1"]),
        ("objective.patch_sizes=null", ["patch_sizes=None", "whole number"]),
        ("objective.patch_sizes=[[1,2]]", ["patch_sizes=[1, 2]", "whole number"]),
        ("guidance.path=[a]", ["guidance.path=['a']", "text"]),
        ("guidance.path=null", ["guidance.path=null", "path"]),
        ("output=[]", ["output=[]", "text"]),
        ("scene.root={a: 1}", ["scene.root={'a': 1}", "text"]),
        ("image=[a]", ["image=['a']", "text"]),
        ("objective.t_max=1000", ["objective.t_min..t_max", "0..999"]),
        ("scene.width=abc", ["scene.width=abc"]),
        ("scene.width=-1", ["scene.width=-1"]),
        ("scene.space=cube", ["source was trained with scene.space=auto, not cube"]),
        ("scene.test_every=-2", ["test_every=-2"]),
        ("seed=20240101120000", ["seed=20240101120000 has to be at most 1000000000000"]),
        ("video_frames=-1", ["video_frames=-1"]),
        ("video_frames=1.5", ["video_frames=1.5"]),
        ("save_every=0", ["save_every=0"]),
        ("seed=abc", ["seed=abc"]),
        ("threads=0", ["threads=0"]),
        ("device=tpu", ["device=tpu", "device=cpu"]),
        ("device=null", ["device=None", "device=cpu"]),
        ("resume=no", ["resume=no", "true or false"]),
        ("overwrite=maybe", ["overwrite=maybe", "true or false"]),
        ("edit.lr=[", ["cannot read edit.lr=[", "brackets"]),
        ("red", ["'red'", "key=value"]),
        ("scene=flower", ["--capture", "scene="]),
        ("refit.iterations=9", ["refit= is for --views"]),
    ],
)
def test_wrong_option_of_an_edit(tmp_path, capsys, edit_options, trained, option, said):
    before = files(tmp_path)
    text = fails(capsys, "edit", *edit_options, option)
    assert all(part in text for part in said), text
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["capture={capture}", "--tgt", "a blue flower"], "--src is missing"),  # the scene's own prompt is another's
        (["capture={capture}", "scene=mug"], "either --capture or scene="),
        (["run=x", "views=y"], "either --run or --views"),
        (["run=x", "scene=mug"], "either --run or scene="),
        (["run=x", "capture={capture}"], "either --run or --capture"),
        (["image=x.png"], "--image x.png: no such file"),
        (['image="x y.png"'], "--image x y.png: no such file"),
    ],
)
def test_flags_as_key_and_value_are_flags(tmp_path, capsys, capture_folder, options, said):
    prompts = [] if "--tgt" in options else ["--src", "a cat", "--tgt", "a pig"]
    text = fails(capsys, "edit", *(o.format(capture=capture_folder) for o in options), *prompts)
    assert said in text
    assert files(tmp_path) == []


def test_as_key_and_value_the_capture_is_the_one_that_is_edited(tmp_path, trained, edit_options):
    at = edit_options.index("--capture")
    given = [*edit_options[:at], f"capture={edit_options[at + 1]}", *edit_options[at + 2 :], "video_frames=0"]
    assert run_command("edit", given) == 0
    assert (tmp_path / "outputs" / "daisies" / "a-red-flower" / "metrics.json").exists()


def test_options_that_change_nothing_are_told(tmp_path, trained, edit_options, caplog):
    given = ["objective=sds", "edit.source_share=0.5", "edit.scale_end=2", "zoom=3", "video_frames=0"]
    assert run_command("edit", [*edit_options, *given]) == 0
    for option in ("edit.source_share=0.5", "edit.scale_end=2"):
        assert f"{option} is ignored by objective=sds: only dds, cds and ids use it" in caplog.text
    assert "zoom= changes nothing without a region" in caplog.text
    caplog.clear()
    assert run_command("edit", [*edit_options, "video_frames=0", "edit.source_share=0.5", "output=other"]) == 0
    assert "changes nothing" not in caplog.text and "is ignored" not in caplog.text


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            ["objective=pds", "guidance.scale=9"],
            "guidance.scale=9 changes nothing: in objective=pds, guidance.pds",
        ),
        (["objective=ssd", "guidance.scale=9"], "guidance.scale=9 changes nothing: in objective=ssd, objective.cross"),
        (["ball=0,0,1.2,0.5", "carve.grow=0.2"], "carve= changes nothing with ball="),
        (["ball=0,0,1.2,0.5", "edit=shape", "edit.volume.grow=2"], "edit.volume.grow= changes nothing with ball="),
        (
            ["ball=0,0,1.2,0.5", "edit=shape", "edit.volume.look=0.4"],
            "edit.volume.look= changes nothing with a given region",
        ),
        (["guidance.image_width=99"], "guidance.image_width= changes nothing here"),
        (["edit.width=2000"], "edit.width=2000 is more than the photos have: 64 is taken"),
    ],
)
def test_each_option_that_changes_nothing_is_told(tmp_path, trained, edit_options, caplog, options, told):
    assert run_command("edit", [*edit_options, "video_frames=0", *options]) == 0
    assert told in caplog.text


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["edit=redraw", "objective=pds", "guidance.scale=3"], ""),  # views are drawn with it
        (["edit=redraw", "objective=sds"], ""),
        (["edit=redraw", "objective=sds", "edit.source_share=0.9"], "edit.source_share=0.9 is ignored"),
        (["edit=shape", "objective=sds", "edit.source_share=0.9"], "edit.source_share=0.9 is ignored"),
        (["edit=published", "objective=pds", "edit.scale_end=2"], "edit.scale_end=2 is ignored"),
        (["edit=latent", "objective=sds", "guidance.image_scale_end=2"], ""),
        (["edit=latent", "objective=sds", "edit.scale_end=2"], "edit.scale_end=2 is ignored"),
    ],
)
def test_options_are_compared_with_those_of_their_preset(caplog, options, told):
    warn_of_options_of_other_objectives(load_config("edit", options))
    assert told in caplog.text and bool(told) == bool(caplog.text)


def test_a_tilde_is_the_users_folder(tmp_path, trained, edit_options, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert run_command("edit", [*edit_options, "video_frames=0", "output=~/mine"]) == 0
    assert (tmp_path / "home" / "mine" / "metrics.json").exists() and not (tmp_path / "~").exists()


def test_captures_of_photographs_and_edits_of_nothing_are_told(tmp_path, trained, edit_options, caplog, monkeypatch):
    given, asked = [*edit_options, "video_frames=0", "edit.lr=1e-9", "output=run"], []
    monkeypatch.setattr("cds3d.commands.edit.warn_of_photographs", lambda config, folders: asked.extend(folders))
    assert run_command("edit", given) == 0
    assert [folder.name for folder in asked] == ["daisies"]
    assert "next to nothing has changed" in caplog.text and "photographs need" not in caplog.text
    monkeypatch.setattr("cds3d.commands.edit._UNCHANGED", 1e9)
    caplog.clear()
    assert run_command("edit", [*given, "overwrite=true"]) == 0
    assert "next to nothing" not in caplog.text


@pytest.mark.parametrize("ours", [True, False])
def test_pocket_is_warned_of_photographs(tmp_path, caplog, ours):
    config = load_config("edit", [])
    if ours:
        (tmp_path / "world.json").write_text("{}")
    warn_of_photographs(config, [tmp_path])
    assert ("photographs need guidance=sd15" in caplog.text) is not ours
    caplog.clear()
    config.guidance.path = "other"
    warn_of_photographs(config, [tmp_path / "elsewhere"])
    assert not caplog.text


def test_a_look_that_leaves_nothing_to_edit_in(tmp_path, capsys, edit_options, trained):
    before = files(tmp_path)
    given = [o for o in edit_options if not o.startswith("edit.iterations")]
    text = fails(capsys, "edit", *given, "edit=shape", "edit.iterations=4", "edit.volume.look=0.9")
    assert "edit.volume.look=0.9 of edit.iterations=4 leaves no iteration to edit in" in text
    assert files(tmp_path) == before


def test_another_edit_in_the_folder_is_not_to_be_overwritten(tmp_path, capsys, edit_options, trained):
    assert run_command("edit", [*edit_options, "video_frames=0", "output=run"]) == 0
    given = [o if o != "a red flower" else "a blue flower" for o in edit_options]
    text = fails(capsys, "edit", *given, "output=run")
    assert 'run holds another edit to "a red flower": give output=FOLDER' in text and "overwrite" not in text
    assert "overwrite=true to do it again" in fails(capsys, "edit", *edit_options, "output=run")
    assert "either resume=true or overwrite=true" in fails(
        capsys, "edit", *edit_options, "output=run", "resume=true", "overwrite=true"
    )


def test_an_edit_that_changes_nothing(tmp_path, capsys, edit_options, trained):
    before = files(tmp_path)
    text = fails(capsys, "edit", *edit_options, "edit.color_lr=0", "edit.network_lr=0", "edit.density_lr=0")
    assert "edit.color_lr, network_lr and density_lr are all 0" in text
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("field.batch=-1", ["batch=-1", "at least 2"]),
        ("field.by_space=many", ["field.by_space has no options", ".OPTION=VALUE"]),
        ("field.by_space={ndc: 3, box: 3, unbounded: 3}", ["field.by_space has no options", ".OPTION=VALUE"]),
        ("field.iterations=many", ["iterations=many", "whole number"]),
        ("field.iterations=2.5", ["iterations=2.5", "whole number"]),
        ("field.decomposition=tucker", ["field.decomposition=tucker", "vm or cp"]),
        ("field.decoder=siren", ["field.decoder=siren", "mlp or tcnn"]),
        ("field.density_components=[]", ["density_components=[]", "three whole numbers of at least 1"]),
        ("field.color_components=[8,8]", ["color_components=[8, 8]", "three whole numbers"]),
        ("field.color_components=[8,8,0]", ["color_components=[8, 8, 0]", "at least 1"]),
        ("field.density_components=[8,4,a]", ["density_components=a", "whole number"]),
        ("field.frequencies=[]", ["frequencies=[]", "two whole numbers"]),
        ("field.frequencies=[1,-1]", ["frequencies=[1, -1]", "two whole numbers"]),
        ("field.feature_dim=2", ["feature_dim=2", "at least 3"]),
        ("field.hidden=0", ["hidden=0", "at least 1"]),
        ("output=true", ["output=True", "text"]),
        ("field=big", ["field=big", "cp, default"]),
        ("edit.lr=1", ["edit.lr is an option of cds3d edit, not of cds3d train"]),
        ("guidance.dtype=bf16", ["guidance.dtype is an option of cds3d edit, not of cds3d train"]),
        ("edit.volume.grow=1", ["edit.volume.grow is an option of cds3d edit"]),
    ],
)
def test_wrong_option_of_a_training(tmp_path, capsys, train_options, option, said):
    text = fails(capsys, "train", *train_options, option)
    assert all(part in text for part in said), text
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    ("prompts", "said"),
    [
        (["--src", "a cat", "--tgt", ""], "--tgt is empty"),
        (["--src", "a cat", "--tgt", "  "], "--tgt is empty"),
        (["--src", "a cat"], "--tgt is empty"),
        (["--src", "a Cat", "--tgt", "A cat "], "nothing to edit"),
        (["--tgt", "a pig"], "--src is missing"),
        (["--src", "a cat", "--tgt", "a ${seed} pig"], "--tgt a ${seed} pig: leave out the ${"),
        (["--src", "a cat", "--tgt", "???"], "--tgt ???: leave out the ???"),
    ],
)
def test_unusable_prompts(tmp_path, capsys, edit_options, prompts, said):
    assert said in fails(capsys, "edit", *prompts, *edit_options[4:])
    assert files(tmp_path) == []


def test_overwriting_waits_until_the_options_are_right(trained, train_options, capsys):
    before = files(trained)
    fails(capsys, "train", *train_options, "overwrite=true", "field.lr_network=high")
    assert files(trained) == before


def test_numbers_may_name_folders_and_scenes():
    config = load_config("train", ["output=2024", "capture=7", "scene.name=1.5"])
    assert (config.output, config.capture, config.scene.name) == ("2024", "7", "1.5")


def test_a_reference_that_leads_nowhere_is_one_line(capsys, train_options, tmp_path):
    assert "Interpolation key 'nobody' not found" in fails(capsys, "train", *train_options, "output=${nobody}")
    assert files(tmp_path) == []


@pytest.mark.parametrize("threads", ["True", "0", "1.5"])
def test_threads_are_a_whole_number(threads, capsys, train_options, tmp_path):
    assert f"threads={threads} has to be a whole number" in fails(capsys, "train", *train_options, f"threads={threads}")
    assert files(tmp_path) == []


def test_no_gpu(capsys, edit_options, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    text = fails(capsys, "edit", *edit_options, "device=cuda")
    assert "device=cuda" in text and "device=cpu" in text
    assert files(tmp_path) == []


@pytest.mark.parametrize("text", ["~/models/sd", "my folder/sd (1)", "été/#1", "a:b,c", "50%", "it's & <that>;!"])
def test_paths_are_taken_as_they_are_typed(text):
    assert load_config("edit", [f"guidance.path={text}"]).guidance.path == text
    assert load_config("edit", ["edit.lr=1e-3", "edit.region.visits=2"]).edit.lr == 0.001


def test_the_home_folder_is_found(tmp_path, tiny_folder, monkeypatch, capsys, train_options):
    monkeypatch.setenv("HOME", str(tmp_path))
    text = fails(capsys, "edit", *train_options, "--src", "a", "--tgt", "b", "guidance.path=~/nowhere")
    assert "guidance.path" in text and "nowhere" in text and "cannot read the options" not in text


def test_line_breaks_and_what_a_terminal_obeys_are_not_told_on(capsys):
    assert fails(capsys, "render", "x", "format=\n") == "error: format= is unknown; use mp4 or png"
    told = fails(capsys, "render", "a\n\x1b[2Jb")
    assert told.startswith("error: a ?[2Jb is no run folder")


@pytest.mark.parametrize("name", ["lr=0.02", "a b", "50%", "x,y"])
def test_folders_of_any_name(name):
    assert load_config("edit", [f"output=outputs/{name}"]).output == f"outputs/{name}"


def test_a_run_whose_name_has_an_equals_sign_is_no_option(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs" / "lr=0.02").mkdir(parents=True)
    assert "outputs/lr=0.02 is no run folder" in fails(capsys, "render", "outputs/lr=0.02")
    assert "unknown option speed" in fails(capsys, "render", "speed=3")

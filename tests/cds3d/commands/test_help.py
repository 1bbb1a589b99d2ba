"""`--help` and the entry point."""

import pytest
from omegaconf import OmegaConf

from cds3d.cli import main, run_command
from cds3d.options import data_folder, groups


@pytest.mark.parametrize("command", ["train", "edit", "render", "bench"])
def test_help_shows_every_option_with_its_default(command, capsys):
    with pytest.raises(SystemExit) as stop:
        run_command(command, ["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    folder = data_folder("configs")
    config = OmegaConf.load(folder / f"{command}.yaml")
    for key, value in config.items():
        if key != "defaults":
            shown = f"[{', '.join(value)}]" if OmegaConf.is_list(value) else value
            shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else shown
            assert f"{key}: {shown}" in text
    chosen = {k: v for entry in config.get("defaults", []) if entry != "_self_" for k, v in entry.items()}
    for group, default in chosen.items():
        assert group in text and all(name in text for name in groups()[group])
        for line in lines_of(folder / group / f"{default}.yaml"):
            assert line in text
    flags = {
        "train": ["--capture"],
        "edit": ["--tgt", "--src", "--image", "--capture"],
        "render": [],
        "bench": ["--quick", "--full"],
    }
    assert all(flag in text for flag in flags[command])


def lines_of(path):
    """Lines with options, of the file and of those that it is based on."""
    own = path.read_text()
    bases = OmegaConf.create(own).get("defaults", [])
    lines = [line for line in own.splitlines() if line and not line.startswith(("defaults:", "  - "))]
    return lines + [line for base in bases if base != "_self_" for line in lines_of(path.with_name(f"{base}.yaml"))]


def test_every_option_has_a_comment():
    for path in data_folder("configs").glob("*.yaml"):
        lines = path.read_text().splitlines()
        for line in lines[lines.index("") + 1 :] if "" in lines else lines:
            if ":" in line and line.split(":")[0] not in ("seed", "frames", "fps"):
                assert "#" in line, f"{path.name}: {line}"


def test_switches_stand_for_options(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_command("bench", ["--full", "cases=0"]) == 1
    assert "cases=0 has to be" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        run_command("bench", ["--quick", "--full"])
    assert stop.value.code == 2 and "not allowed with" in capsys.readouterr().err


def test_main(capsys):
    assert main([]) == 0
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("train", "edit", "render", "bench"))
    assert main(["paint"]) == 2
    out, err = capsys.readouterr()
    assert err == "error: 'paint' is no command; use one of: train, edit, render, bench\n" and out == ""
    assert main(["--version"]) == 0
    assert "cds3d 0." in capsys.readouterr().out


def test_main_hands_on_to_the_commands(capsys):
    assert main(["render"]) == 1
    assert "which run" in capsys.readouterr().err

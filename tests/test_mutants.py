"""The list of scripts/mutants.py fits the code: a line that has moved on is not tried, and nobody would notice."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
MUTANTS = yaml.safe_load((ROOT / "tests" / "mutants.yaml").read_text())


@pytest.mark.parametrize("file", sorted({mutant["file"] for mutant in MUTANTS}))
def test_lines_stand_once_and_their_tests_exist(file):
    code = (ROOT / file).read_text()
    for mutant in MUTANTS:
        if mutant["file"] == file:
            assert code.count(mutant["line"]) == 1, mutant["line"]
            assert mutant["line"] != mutant["becomes"]
            assert all((ROOT / test).is_file() for test in mutant["tests"].split()), mutant["tests"]


def test_a_file_that_is_not_in_the_list_is_told(tmp_path):
    command = [sys.executable, str(ROOT / "scripts" / "mutants.py"), "--only", "nope"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1 and done.stdout == "" and not list(tmp_path.iterdir())
    assert done.stderr == "error: --only nope: tests/mutants.yaml has no file with this in its name\n"

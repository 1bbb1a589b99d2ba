"""The list of scripts/mutants.py fits the code: a line that has moved on is not tried, and nobody would notice."""

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

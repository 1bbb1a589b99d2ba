"""What is wrong with a command's words is told before torch and diffusers are imported."""

import json
import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from cds3d.cli import _less_memory

CODE = """
import json, sys
from cds3d.cli import main
code = main(json.loads(sys.argv[1]))
print(code, [name for name in ("torch", "diffusers", "transformers") if name in sys.modules])
"""


@pytest.mark.parametrize(
    ("line", "told", "imported"),
    [
        (["edit"], "--tgt is empty", []),
        (["edit", "--tgt", "a pig", "--src", "A pig"], "are both", []),
        (["edit", "--tgt", "a pig", "--image", "nosuch.jpg", "--src", "a cat"], "--image nosuch.jpg: no such file", []),
        (["edit", "--tgt", "a pig", "--image", ".", "--src", "a cat"], "--image . is a folder: name one picture", []),
        (["edit", "--tgt", "a pig", "--image", sys.executable], "--src is missing", []),
        (
            ["edit", "--tgt", "a", "--src", "b", "--image", sys.executable, "edit=shape"],
            "edit=latent or edit=pixels",
            [],
        ),
        (["edit", "--tgt", "a pig", "--image", sys.executable, "where=x"], "--where is for scenes", []),
        (["edit", "--tgt", "a pig", "scene=dog"], "scene=dog is unknown", []),
        (["train", "scene=dog"], "scene=dog is unknown", []),
        (["render", "--scene", "dog"], "unrecognized arguments", []),
        (["edit", "--tgt", "a pig", "--src", "a", "--capture", "nosuch"], "nosuch: no such folder", ["torch"]),
        (["edit", "--tgt", "a pig", "--run", "nosuch"], "nosuch is no run folder", ["torch"]),
        (["view", "nosuch"], "nosuch is no run folder", ["torch"]),
    ],
)
def test_wrong_words_cost_no_import(tmp_path, line, told, imported):
    done = subprocess.run(
        [sys.executable, "-c", CODE, json.dumps(line)], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert told in done.stderr.splitlines()[-1]
    if done.returncode == 0:  # argparse ends the program itself
        assert done.stdout == f"1 {imported}\n"


@pytest.mark.parametrize(("dtype", "hint"), [("fp32", True), ("fp16", False), ("bf16", False)])
def test_half_precision_is_no_remedy_where_it_is_used_already(dtype, hint):
    config = OmegaConf.create({"device": "cpu", "guidance": {"dtype": dtype}})
    told = _less_memory("edit", config)
    assert told.startswith("use guidance.dtype=bf16, or free memory" if hint else "free memory elsewhere")

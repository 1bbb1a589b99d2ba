"""The code on docs/api.md runs as it is written."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE, FLOWER = ROOT / "docs" / "api.md", ROOT / "scenes" / "flower"


def test_the_code_of_the_page_runs(tmp_path):
    options, training = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    names = {}
    shown, tried = 'load_config("train", [])', 'load_config("train", ["field.iterations=2", "field.batch=64"])'
    assert shown in options
    exec(options.replace(shown, tried), names)
    assert names["edit"].iterations > 2 and names["training"].iterations == 2
    for shown, tried in (("my/capture", str(FLOWER)), ("width=504", "width=32"), ("my/", f"{tmp_path}/")):
        assert shown in training
        training = training.replace(shown, tried)
    exec(training, names)
    assert names["picture"].shape[1:] == (32, 3)

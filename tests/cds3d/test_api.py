"""What `import cds3d` and `import tensorf` offer to a program or a notebook."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import cds3d
import tensorf

API = Path(__file__).resolve().parents[2] / "docs" / "api.md"


@pytest.mark.parametrize("package", [cds3d, tensorf], ids=["cds3d", "tensorf"])
def test_every_name_is_there(package):
    assert set(package.__all__) <= set(dir(package))
    for name in package.__all__:
        made = getattr(package, name)
        assert isinstance(made, dict) or made.__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        package.nothing  # noqa: B018


def test_importing_the_packages_loads_nothing_large():
    code = "import cds3d, tensorf, sys; sys.exit(any(name in sys.modules for name in ('torch', 'diffusers', 'numba')))"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_page_of_the_api_names_them_all():
    listed = re.findall(r"`(?:from )?(cds3d|tensorf)\.(\w+)`", API.read_text())
    assert {name for package, name in listed if package == "cds3d"} == set(cds3d.__all__)
    assert {name for package, name in listed if package == "tensorf"} == set(tensorf.__all__)

"""What `import cds3d` and `import tensorf` offer to a program or a notebook."""

import ast
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


@pytest.mark.parametrize("package", [cds3d, tensorf], ids=["cds3d", "tensorf"])
def test_type_checkers_see_the_same_names(package):
    source = Path(package.__file__)
    (block,) = (n for n in ast.parse(source.read_text()).body if isinstance(n, ast.If))
    assert block.test.id == "TYPE_CHECKING" and (source.parent / "py.typed").is_file()
    seen = {name.name: (n.module, name.asname) for n in block.body for name in n.names}
    full = "" if package is cds3d else "tensorf."
    modules = {name: (f"{full}{module}", name) for name, module in package._MODULES.items()}
    assert seen == modules  # "X as X": a name that is given on


def test_importing_the_packages_loads_nothing_large():
    code = "import cds3d, tensorf, sys; sys.exit(any(name in sys.modules for name in ('torch', 'diffusers', 'numba')))"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_page_of_the_api_names_them_all():
    listed = re.findall(r"`(?:from )?(cds3d|tensorf)\.(\w+)`", API.read_text())
    assert {name for package, name in listed if package == "cds3d"} == set(cds3d.__all__)
    assert {name for package, name in listed if package == "tensorf"} == set(tensorf.__all__)

"""What all tests share."""

import gc

import pytest


def pytest_runtest_teardown(item, nextitem):
    """Imported modules stay: what looks for garbage, as commands do where they measure memory, then skips them."""
    if nextitem is None or nextitem.path != item.path:
        gc.collect()
        gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Captured output goes from pytest-xdist's workers as UTF-8; file names that are not UTF-8 would end the worker."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "replace").decode()) for name, text in report.sections]
    return report

"""Marks the tests that need a GPU, so that a GPU host can run these alone: `pytest tests -m gpu`."""

import pytest

REASON = "needs a CUDA device"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if any(mark.kwargs.get("reason") == REASON for mark in item.iter_markers("skipif")):
            item.add_marker("gpu")

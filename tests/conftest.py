"""What every test shares: a fresh default graph, and the option that rewrites golden files.

Nothing is read from the user's cache or written to it, by processes that tests start neither.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache

import pytest

import graphc as gx

os.environ["GRAPHC_CACHE"] = "off"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="write what the golden tests find instead of comparing with it",
    )


@cache
def _missing_for_gpu() -> str:
    from graphc.backends.gpu.probe import missing_for_gpu

    return missing_for_gpu()


MEASURED = 3
"""How many cases of one test coverage measures: it makes what it measures two or three times
slower, and further cases of a test run lines that these or other tests have run."""

VARIED = ("einsum", "index", "nn", "outside", "text", "train")
"""Tests whose cases are quick and run lines of their own: coverage measures all of them."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of tests with many cases coverage measures a few, spread evenly over those that run here.

    The same ones in every run, so that what the report says does not change by itself.
    """
    if not config.pluginmanager.hasplugin("_cov"):
        return
    tests: dict[str, list[pytest.Item]] = {}
    for item in items:
        runs = item.get_closest_marker("gpu") is None or not _missing_for_gpu()
        if runs and item.path.stem.removeprefix("test_") not in VARIED:
            tests.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for cases in tests.values():
        measured = {len(cases) * i // MEASURED for i in range(MEASURED)}
        for i, case in enumerate(cases):
            if i not in measured:
                case.add_marker("no_cover")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests that need a GPU are skipped where there is none, with what is missing."""
    if item.get_closest_marker("gpu") is not None and _missing_for_gpu():
        pytest.skip(_missing_for_gpu())


@pytest.fixture(autouse=True)
def fresh_default_graph() -> Iterator[None]:
    """Tests do not see each other's nodes."""
    gx.reset_default_graph()
    yield
    gx.reset_default_graph()


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    """Whether golden files are to be rewritten."""
    return bool(request.config.getoption("--update-golden"))

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

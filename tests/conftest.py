"""What every test shares: a fresh default graph, and the option that rewrites golden files.

Nothing is read from the user's cache or written to it, by processes that tests start neither.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

import graphc as gx

os.environ["GRAPHC_CACHE"] = "off"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="write what the golden tests find instead of comparing with it",
    )


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

"""Environment flags: their values, what is refused, and that each is used and documented."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

from graphc import flags
from graphc.errors import GraphcError
from graphc.flags import FLAGS, Flag

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    ("flag", "text", "value"),
    [
        (flags.THREADS, "3", 3),
        (flags.THREADS, " 12 ", 12),
        (flags.VERIFY, "1", True),
        (flags.VERIFY, "0", False),
        (flags.DUMP, "a folder", "a folder"),
    ],
)
def test_a_flag_is_read_when_it_is_used(
    flag: Flag[Any], text: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(flag.name, raising=False)
    assert flag.value == flag.default
    monkeypatch.setenv(flag.name, text)
    assert flag.value == value
    monkeypatch.setenv(flag.name, "")
    assert flag.value == flag.default


@pytest.mark.parametrize(
    ("flag", "text", "message"),
    [
        (flags.THREADS, "0", "GRAPHC_THREADS='0': expected a positive whole number"),
        (flags.THREADS, "two", "GRAPHC_THREADS='two': expected a positive whole number"),
        (flags.VERIFY, "yes", "GRAPHC_VERIFY='yes': expected 0 or 1"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused(
    flag: Flag[Any], text: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(flag.name, text)
    with pytest.raises(GraphcError) as caught:
        _ = flag.value
    assert str(caught.value) == f"environment variable {message}"


def _constants() -> dict[str, Flag[Any]]:
    return {name: value for name, value in vars(flags).items() if isinstance(value, Flag)}


def test_the_table_holds_every_flag() -> None:
    assert set(FLAGS) == set(_constants().values())
    assert len({flag.name for flag in FLAGS}) == len(FLAGS)


def _flags_read() -> set[str]:
    """Names `N` of `flags.N` in graphc."""
    sources = [p.read_text(encoding="utf-8") for p in (ROOT / "graphc").rglob("*.py")]
    nodes = [n for s in sources if "import flags" in s for n in ast.walk(ast.parse(s))]
    attributes = [n for n in nodes if isinstance(n, ast.Attribute)]
    return {n.attr for n in attributes if isinstance(n.value, ast.Name) and n.value.id == "flags"}


def test_every_flag_is_used() -> None:
    assert set(_constants()) - _flags_read() == set()


def test_only_flags_reads_the_environment() -> None:
    readers = [
        path.relative_to(ROOT).as_posix()
        for path in sorted((ROOT / "graphc").rglob("*.py"))
        if "os.environ" in path.read_text() or "getenv" in path.read_text()
    ]
    assert readers == ["graphc/flags.py"]


@pytest.mark.parametrize("flag", FLAGS, ids=lambda f: f.name)
def test_every_flag_is_documented(flag: Flag[Any]) -> None:
    text = (ROOT / "docs" / "concepts.md").read_text(encoding="utf-8")
    assert f"| `{flag.name}` |" in text

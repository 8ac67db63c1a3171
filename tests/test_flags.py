"""Environment flags: their values, what is refused, and that each is used and documented."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import graphc as gx
from graphc import flags
from graphc.errors import GraphcError, VerifyError
from graphc.flags import FLAGS, Flag
from graphc.passes import pipeline
from graphc.program import Program

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    ("flag", "text", "value"),
    [
        (flags.THREADS, "3", 3),
        (flags.THREADS, " 12 ", 12),
        (flags.VERIFY, "1", True),
        (flags.VERIFY, "0", False),
        (flags.DUMP, "a folder", "a folder"),
        (flags.CACHE, "off", "off"),
        (flags.CACHE_SIZE, "300", 300),
        (flags.CACHE_SIZE, "2G", 1 << 31),
        (flags.CACHE_SIZE, "500m", 500 << 20),
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
        (
            flags.CACHE_SIZE,
            "big",
            "GRAPHC_CACHE_SIZE='big': expected a number of bytes, such as 500M or 2G",
        ),
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
    nodes = [n for s in sources if "flags." in s for n in ast.walk(ast.parse(s))]
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


def _run_something() -> None:
    with gx.Graph().as_default(), gx.Session() as session:
        x = gx.placeholder("f32", (None, 3), name="x")
        session.run(gx.sum(x * 2 + 1), {x: np.ones((2, 3))})


def test_threads_are_taken_from_the_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPHC_THREADS", "3")
    assert gx.Session().threads == 3
    assert gx.Session(threads=1).threads == 1


def test_dump_writes_every_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPHC_DUMP", str(tmp_path))
    _run_something()
    texts = [p.read_text(encoding="utf-8") for p in sorted(tmp_path.iterdir())]
    assert "placeholder()" in texts[0]
    assert texts[-1].startswith("plan: ")


def test_verify_names_the_pass_that_broke_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    def break_program(program: Program) -> Program:
        return replace(program, inputs=())  # the placeholder is used but is no input any more

    monkeypatch.setattr(pipeline, "GRAPH_PASSES", [("break_program", break_program)])
    monkeypatch.setenv("GRAPHC_VERIFY", "1")
    with pytest.raises(VerifyError, match="after pass break_program"):
        _run_something()

"""The documentation: every Python snippet runs and prints what it says, every name and link holds.

The snippets of a page run in order in one namespace.  A `text` block right after a snippet is what
it prints; `...` stands for anything.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import graphc as gx
from graphc.node import OPS

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NAME = re.compile(r"\bgx((?:\.[A-Za-z_][A-Za-z0-9_]*)+)")
FILE = re.compile(r"`((?:graphc|tests|docs|examples|benchmarks)/[^` ]*)`")
LINK = re.compile(r"\]\(([^)#]+)(#[^)]*)?\)")


@dataclass(frozen=True)
class Snippet:
    """A block of Python at a line of a page, and what it prints (None: nothing is said)."""

    line: int
    source: str
    printed: str | None


def snippets(text: str) -> list[Snippet]:
    """The Python blocks of a page."""
    blocks = list(FENCE.finditer(text))
    found = []
    for i, block in enumerate(blocks):
        following = blocks[i + 1] if i + 1 < len(blocks) else None
        if block[1] != "python":
            continue
        printed = None
        adjacent = following is not None and not text[block.end() : following.start()].strip()
        if following is not None and following[1] == "text" and adjacent:
            printed = following[2]
        found.append(Snippet(text.count("\n", 0, block.start()) + 2, block[2], printed))
    return found


def run_page(text: str, file: str) -> None:
    """Run a page's snippets; raises AssertionError where one prints something else."""
    namespace: dict[str, Any] = {"__name__": "__page__"}
    for snippet in snippets(text):
        # blank lines in front, so that errors name the page's line
        code = compile("\n" * (snippet.line - 1) + snippet.source, file, "exec")
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(code, namespace)
        if snippet.printed is not None:
            matches = doctest.OutputChecker().check_output(
                snippet.printed, out.getvalue(), doctest.ELLIPSIS
            )
            assert matches, f"{file}:{snippet.line} printed\n{out.getvalue()}not\n{snippet.printed}"


def without_blocks(text: str, *kinds: str) -> str:
    """A page without its fenced blocks of some kinds."""
    return FENCE.sub(lambda m: "" if m[1] in kinds else m[0], text)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_snippets_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    registered = set(OPS)
    gx.reset_default_graph()
    try:
        run_page(page.read_text(encoding="utf-8"), str(page))
    finally:
        gx.reset_default_graph()
        for name in set(OPS) - registered:
            del OPS[name]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_name_exists(page: Path) -> None:
    missing = []
    for dotted in sorted(set(NAME.findall(page.read_text(encoding="utf-8")))):
        found: Any = gx
        for part in dotted.split(".")[1:]:
            found = getattr(found, part, None)
        if found is None:
            missing.append("gx" + dotted)
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = without_blocks(page.read_text(encoding="utf-8"), "python", "text", "sh")
    targets = [m[1] for m in LINK.finditer(text) if "://" not in m[1]]
    assert [t for t in targets if not (page.parent / t).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_files_that_are_named_exist(page: Path) -> None:
    named = set(FILE.findall(page.read_text(encoding="utf-8")))
    assert [name for name in sorted(named) if not list(ROOT.glob(name))] == []


def test_readme_has_its_two_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = re.findall(r"<!-- command: (\w+) -->\n```sh\n(.*?)\n```", text)
    assert [name for name, _ in commands] == ["demo", "test"]
    assert all("\n" not in command for _, command in commands)


def test_the_operator_table_is_up_to_date() -> None:
    made = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "generate_operators.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert made.returncode == 0, made.stdout + made.stderr


def test_a_wrong_page_is_found() -> None:
    right = "```python\nprint(1, 2)\n```\n\n```text\n1 ...\n```\n"
    run_page(right, "right.md")
    with pytest.raises(AssertionError, match=r"wrong\.md:2 printed"):
        run_page(right.replace("1 ...", "3 ..."), "wrong.md")
    with pytest.raises(ZeroDivisionError):
        run_page("```python\n1 / 0\n```\n", "wrong.md")

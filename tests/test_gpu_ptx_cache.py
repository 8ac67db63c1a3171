"""PTX is kept on disk by its text and what it is for."""

from __future__ import annotations

from pathlib import Path

import pytest

from graphc.backends.gpu import ptx_cache

TEXT = "define ptx_kernel void @k(ptr %a) {\n  store i64 1, ptr %a, align 8\n  ret void\n}\n"


def test_a_text_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPHC_CACHE", str(tmp_path / "kept"))
    compiled = []

    def to_ptx(text: str, capability: tuple[int, int]) -> str:
        compiled.append(text)
        return made(text, capability)

    made = ptx_cache.to_ptx
    monkeypatch.setattr(ptx_cache, "to_ptx", to_ptx)
    first = ptx_cache.kept_ptx(TEXT, (8, 0))
    assert ".target sm_80" in first
    assert ptx_cache.kept_ptx(TEXT, (8, 0)) == first
    assert len(compiled) == 1
    assert ".target sm_90" in ptx_cache.kept_ptx(TEXT, (9, 0))
    assert ".entry k2(" in ptx_cache.kept_ptx(TEXT.replace("@k", "@k2"), (8, 0))
    assert len(compiled) == 3


def test_without_a_cache_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPHC_CACHE", "off")
    assert ptx_cache.kept_ptx(TEXT, (7, 5)) == ptx_cache.to_ptx(TEXT, (7, 5))

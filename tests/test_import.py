"""What importing graphc does: nothing but defining names."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROBE = """
import json, sys, threading
written = []
def watch(event, arguments):
    if event == "open":
        mode, flags = arguments[1], arguments[2]
        if mode is None and flags & 3 or mode is not None and set(mode) & set("wax+"):
            written.append(str(arguments[0]))
    elif event in ("os.mkdir", "os.rename", "os.remove", "socket.connect", "subprocess.Popen"):
        written.append(event)
sys.addaudithook(watch)
import {module}
print(json.dumps({{
    "modules": sorted({{name.partition(".")[0] for name in sys.modules}}),
    "threads": threading.active_count(),
    "tasks": len(__import__("os").listdir("/proc/self/task")) if sys.platform == "linux" else 1,
    "written": written,
}}))
"""

ROOT = Path(__file__).resolve().parent.parent


def probe(module: str) -> dict[str, Any]:
    """Import a module in a fresh interpreter, all warnings errors; say what happened."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    # NumPy's own library starts threads when it is imported, unless told not to
    environment.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1")
    for name in ("COV_CORE_SOURCE", "COV_CORE_CONFIG", "COV_CORE_DATAFILE"):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROBE.format(module=module)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def imported() -> dict[str, Any]:
    return probe("graphc")


@pytest.mark.parametrize(
    "library",
    ["llvmlite", "networkx", "safetensors", "pycuda", "onnx", "sklearn", "matplotlib", "rich"],
)
def test_importing_loads_no_heavy_library(imported: dict[str, Any], library: str) -> None:
    assert library not in imported["modules"]


def test_importing_starts_no_thread(imported: dict[str, Any]) -> None:
    assert imported["threads"] == 1
    assert imported["tasks"] == 1


def test_importing_writes_no_file(imported: dict[str, Any]) -> None:
    assert imported["written"] == []


def test_the_probe_sees_what_it_looks_for(tmp_path: Path) -> None:
    body = f"import threading, networkx\nopen({str(tmp_path / 'x')!r}, 'w').close()\n"
    body += "threading.Thread(target=__import__('time').sleep, args=(9,), daemon=True).start()\n"
    (tmp_path / "busy.py").write_text(body)
    found = probe(f"sys; sys.path.insert(0, {str(tmp_path)!r}); import busy")
    assert "networkx" in found["modules"]
    assert found["threads"] == 2
    assert str(tmp_path / "x") in found["written"]

"""The command that does everything on a GPU, rehearsed on the emulator: benchmarks/gpu_check.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def rehearse(out: Path, *options: str) -> tuple[int, str]:
    """Exit status and what was printed."""
    script = [sys.executable, str(ROOT / "benchmarks" / "gpu_check.py")]
    done = subprocess.run(
        [*script, "--device", "emulated-gpu", "--out", str(out), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "GRAPHC_CACHE": "off"},
    )
    return done.returncode, done.stdout


def test_sections_write_what_they_found(tmp_path: Path) -> None:
    out = tmp_path / "found" / "gpu.json"
    status, said = rehearse(out, "--only", "machine", "bandwidth")
    assert status == 0, said
    found = json.loads(out.read_text())
    assert set(found) == {"machine", "bandwidth", "goals", "command", "when"}
    assert found["bandwidth"]["chain4096"]["share"] > 0


def test_what_does_not_fit_the_time_is_left_out_and_said_to_be(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    status, said = rehearse(out, "--only", "machine", "overhead", "--minutes", "0")
    assert status == 1
    assert "out of time" in said
    found = json.loads(out.read_text())
    assert found["machine"]["doctor"]["cpu_works"]
    assert "out of time" in found["overhead"]["failed"]

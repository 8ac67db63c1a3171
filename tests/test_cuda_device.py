"""The executor on PyCUDA itself, over a driver without a GPU: cuda/fake_driver.c.

Each scenario is a process of its own, so that ending one counts too.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent

SCENARIOS = (
    "values",
    "checks",
    "traced",
    "threads",
    "unloading",
    "out_of_memory",
    "fault",
    "interfaces",
    "forked",
    "too_old",
    "no_device",
    "old_driver",
    "other_number",
)

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the fake driver is built for Linux"),
    pytest.mark.skipif(shutil.which("gcc") is None, reason="building the fake driver takes gcc"),
    pytest.mark.skipif(
        importlib.util.find_spec("pycuda") is None, reason="PyCUDA is not installed"
    ),
]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("driver") / "libcuda.so.1"
    source = HERE / "cuda" / "fake_driver.c"
    flags = ["-O1", "-fPIC", "-shared", "-pthread", f"-Wl,-soname,{library.name}"]
    subprocess.run(["gcc", *flags, str(source), "-o", str(library)], check=True)
    return library


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_on_a_fake_driver(driver: Path, scenario: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(HERE / "cuda" / "fake_gpu.py"), str(driver), scenario],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(HERE.parent)},
    )
    assert (done.returncode, done.stdout.strip()) == (0, "done"), done.stderr
    assert "PyCUDA" not in done.stderr

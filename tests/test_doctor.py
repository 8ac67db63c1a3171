"""What `graphc doctor` says where something is missing, old or broken; each absence is faked."""

from __future__ import annotations

import ctypes
import importlib.metadata
import json
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest

from graphc import cli, doctor
from graphc.backends.gpu import probe
from graphc.backends.gpu.probe import DRIVER, missing_for_gpu, needed_findings, probe_driver
from graphc.findings import MISSING, OK, WRONG, Finding


class FakeDriver:
    """libcuda as ctypes would call it, with devices of some capabilities."""

    def __init__(
        self, version: int = 13000, status: int = 0, capabilities: tuple[int, ...] = (90,)
    ) -> None:
        self.version = version
        self.status = status
        self.capabilities = capabilities

    def cuInit(self, flags: int) -> int:
        return self.status

    def cuDriverGetVersion(self, out: Any) -> int:
        out._obj.value = self.version
        return 0

    def cuGetErrorString(self, code: int, out: Any) -> int:
        out._obj.value = f"words for {code}".encode()
        return 0

    def cuDeviceGetCount(self, out: Any) -> int:
        out._obj.value = len(self.capabilities)
        return 0

    def cuDeviceGet(self, out: Any, number: int) -> int:
        out._obj.value = number
        return 0

    def cuDeviceGetName(self, buffer: Any, size: int, device: ctypes.c_int) -> int:
        buffer.value = f"Fake {device.value}".encode()
        return 0

    def cuDeviceTotalMem_v2(self, out: Any, device: ctypes.c_int) -> int:
        out._obj.value = 8 << 30
        return 0

    def cuDeviceGetAttribute(self, out: Any, what: int, device: ctypes.c_int) -> int:
        out._obj.value = divmod(self.capabilities[device.value], 10)[what - 75]
        return 0


def absent(name: str) -> Any:
    raise OSError("cannot open shared object file")


def loading(driver: object) -> Callable[[str], Any]:
    """A loader that gives this library, asked for by the driver's name."""

    def load(name: str) -> Any:
        assert name == DRIVER
        return driver

    return load


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make a module importable with some attributes, of a version; or, without one, absent."""
    real = importlib.metadata.version

    def fake(module: str, version: str | None, **attributes: object) -> None:
        package = module.partition(".")[0]

        def look(name: str) -> str:
            if name != package:
                return real(name)
            if version is None:
                raise importlib.metadata.PackageNotFoundError(name)
            return version

        monkeypatch.setattr(importlib.metadata, "version", look)
        made = types.ModuleType(module)
        vars(made).update(attributes)
        for name in (package, module):
            monkeypatch.setitem(sys.modules, name, made if attributes else None)

    return fake


def pycuda(modules: Callable[..., None], *built: int) -> None:
    modules("pycuda.driver", "2026.1", get_version=lambda: built)


# ---- the driver --------------------------------------------------------------------------------


def test_no_driver() -> None:
    found = probe_driver(absent)
    assert found.finding == Finding(
        "CUDA driver",
        MISSING,
        f"{DRIVER}: cannot open shared object file",
        "install NVIDIA's driver, https://www.nvidia.com/drivers",
    )
    assert found.gpus == ()


@pytest.mark.parametrize(
    ("status", "advice"),
    [
        (34, "the library found is the CUDA toolkit's stub: put the driver's own before it"),
        (100, "is a GPU in this machine, and given to this container?  nvidia-smi lists them"),
        (999, "nvidia-smi may say more"),
    ],
)
def test_a_driver_that_does_not_start(status: int, advice: str) -> None:
    found = probe_driver(loading(FakeDriver(status=status))).finding
    text = f"{DRIVER} does not start: words for {status} (error {status})"
    assert found == Finding("CUDA driver", WRONG, text, advice)


def test_a_library_that_is_no_driver() -> None:
    found = probe_driver(loading(object())).finding
    assert found.state == WRONG
    assert found.found.startswith(f"{DRIVER} is not a CUDA driver: ")


def test_an_old_driver() -> None:
    found = probe_driver(loading(FakeDriver(version=10020)))
    assert found.finding.state == WRONG
    assert found.finding.found == "CUDA 10.2, too old"
    assert found.version == (10, 2)


def test_devices() -> None:
    found = probe_driver(loading(FakeDriver(capabilities=(90, 61))))
    assert found.finding == Finding("CUDA driver", OK, "supports CUDA 13.0")
    new, old = probe.gpu_findings(found)
    assert new == Finding("GPU 0", OK, "Fake 0, compute capability 9.0, 8.0 GiB")
    assert old.state == WRONG
    assert old.advice == "too old: compute capability 7.5 or more is needed"


# ---- PyCUDA, LLVM, tools -----------------------------------------------------------------------


def test_no_pycuda(modules: Callable[..., None]) -> None:
    modules("pycuda.driver", None)
    assert probe.probe_pycuda() == Finding(
        "PyCUDA", MISSING, "not installed", "pip install 'graphc[cuda]', see docs/gpu.md"
    )


def test_pycuda_that_does_not_load(modules: Callable[..., None]) -> None:
    modules("pycuda.driver", "2026.1")
    found = probe.probe_pycuda(probe_driver(absent))
    assert (found.state, found.advice) == (WRONG, f"it needs {DRIVER}")
    found = probe.probe_pycuda(probe_driver(loading(FakeDriver())))
    assert found.advice == "build it again for the CUDA this driver supports, see docs/gpu.md"


def test_pycuda_built_for_a_newer_driver(modules: Callable[..., None]) -> None:
    pycuda(modules, 13, 0, 0)
    found = probe.probe_pycuda(probe_driver(loading(FakeDriver(version=12080))))
    assert found.state == WRONG
    assert found.found == "2026.1, built for CUDA 13.0; the driver supports only CUDA 12.8"
    same = probe.probe_pycuda(probe_driver(loading(FakeDriver())))
    assert same == Finding("PyCUDA", OK, "2026.1, built for CUDA 13.0")


def test_old_llvm(modules: Callable[..., None]) -> None:
    modules("llvmlite.binding", "0.44.0", llvm_version_info=(15, 0, 7))
    found = probe.probe_llvm()
    assert (found.state, found.found) == (WRONG, "LLVM 15.0.7, too old")


def test_no_llvmlite(modules: Callable[..., None]) -> None:
    modules("llvmlite.binding", None)
    assert probe.probe_llvm().state == MISSING


def test_llvm_without_gpus(modules: Callable[..., None]) -> None:
    class Target:
        @staticmethod
        def from_triple(triple: str) -> None:
            raise RuntimeError("no such target")

    modules(
        "llvmlite.binding",
        "0.48.0",
        llvm_version_info=(22, 1, 0),
        initialize_all_targets=lambda: None,
        Target=Target,
    )
    found = probe.probe_llvm()
    assert (found.state, found.found) == (WRONG, "LLVM 22.1.0 has no NVPTX: no such target")


def test_this_llvm_makes_code_for_gpus() -> None:
    assert probe.probe_llvm().state == OK


def test_no_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert [f.state for f in probe.probe_tools()] == [MISSING]


def test_tools_that_do_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: "/nonexistent/ptxas")
    (ptxas,) = probe.probe_tools()
    assert ptxas.state == WRONG
    assert ptxas.found.startswith("/nonexistent/ptxas does not run: ")


# ---- in all ------------------------------------------------------------------------------------


def test_nothing_is_missing(modules: Callable[..., None]) -> None:
    pycuda(modules, 12, 4, 0)
    assert missing_for_gpu(needed_findings(loading(FakeDriver()))) == ""
    assert missing_for_gpu(needed_findings(loading(FakeDriver(capabilities=(61, 80))))) == ""


def test_what_is_missing_is_said_at_once(modules: Callable[..., None]) -> None:
    modules("pycuda.driver", None)
    assert missing_for_gpu(needed_findings(absent)) == (
        f"CUDA driver: {DRIVER}: cannot open shared object file "
        "(install NVIDIA's driver, https://www.nvidia.com/drivers); "
        "PyCUDA: not installed (pip install 'graphc[cuda]', see docs/gpu.md)"
    )


@pytest.mark.parametrize(
    ("capabilities", "text"),
    [
        ((), "GPU: the driver has no device (is a GPU in this machine, "),
        ((61,), "GPU 0: Fake 0, compute capability 6.1, 8.0 GiB (too old: "),
    ],
)
def test_no_device_that_can_be_used(
    modules: Callable[..., None], capabilities: tuple[int, ...], text: str
) -> None:
    pycuda(modules, 13, 0, 0)
    found = missing_for_gpu(needed_findings(loading(FakeDriver(capabilities=capabilities))))
    assert found.startswith(text)


# ---- the command -------------------------------------------------------------------------------


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a driver."""
    findings = needed_findings(absent)
    monkeypatch.setattr(probe, "needed_findings", lambda: findings)


def test_a_missing_gpu_is_an_error_if_one_is_asked_for(
    no_gpu: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert "  ok       compiled code  runs\n" in printed
    assert "  missing  cache          off\n" in printed
    assert "The CPU works; a GPU cannot be used." in printed
    assert cli.main(["doctor", "--gpu"]) == 1


def test_json(no_gpu: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["cpu_works"]
    assert not found["gpu_works"]
    assert found["gpu"][0]["name"] == "CUDA driver"


def test_without_llvmlite_nothing_runs(
    no_gpu: None,
    monkeypatch: pytest.MonkeyPatch,
    modules: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("graphc.backends.llvm.target._binding", None)
    modules("llvmlite.binding", None)
    assert cli.main(["doctor"]) == 1
    printed = capsys.readouterr().out
    assert "missing  llvmlite       does not load: " in printed
    assert "-> pip install llvmlite" in printed
    assert "The CPU does not work" in printed


def test_code_that_computes_something_else_is_seen(
    no_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graphc.Session.run", lambda *_: types.SimpleNamespace(tolist=lambda: [0]))
    found = doctor.examine()
    assert not found.cpu_works
    (wrong,) = (f for f in found.cpu if f.state == WRONG)
    assert wrong.found == "x * x + 1 is [0] for 1, 2, 3"


def test_a_gpu_that_seems_to_be_there_is_tried(
    modules: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    pycuda(modules, 13, 0, 0)
    findings = needed_findings(loading(FakeDriver()))
    monkeypatch.setattr(probe, "needed_findings", lambda: list(findings))
    found = doctor.examine()
    assert found.cpu_works
    tried = found.gpu[-1]
    assert (tried.name, tried.state) == ("code on a GPU", WRONG)  # there is none, after all
    assert not found.gpu_works

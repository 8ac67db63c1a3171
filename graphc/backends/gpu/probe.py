"""What a GPU needs, and what of it is there: driver, device, PyCUDA, LLVM, tools.

Nothing here raises, whatever is missing: each probe returns findings, with a line of advice for
what is not as it should be.  The driver is asked through ctypes, so PyCUDA need not be there.
Imports: findings.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from graphc.findings import MISSING, OK, WRONG, Finding, version_of, version_text

DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"

LLVM = 22
"""The first LLVM that compiles all kernels for a GPU; llvmlite 0.48 has it."""

CAPABILITY = (7, 5)
"""The oldest GPUs that kernels are written for: Turing."""

DRIVER_VERSION = (11, 4)
"""The CUDA version that a driver must support: the first whose graphs take flags."""

INSTALL_DRIVER = "install NVIDIA's driver, https://www.nvidia.com/drivers"
INSTALL_PYCUDA = "pip install 'graphc[cuda]', see docs/gpu.md"

_ADVICE = {
    34: "the library found is the CUDA toolkit's stub: put the driver's own before it",
    100: "is a GPU in this machine, and given to this container?  nvidia-smi lists them",
    802: "the driver is still starting, or its fabric manager is not running",
    803: "the driver was updated: restart the machine, or reload the driver's modules",
    804: "the CUDA compatibility package does not fit this GPU: remove it",
}
"""By the driver's error number."""

_MAJOR, _MINOR = 75, 76
"""The attributes that make up a device's compute capability."""


@dataclass(frozen=True)
class Gpu:
    """A device the driver knows."""

    number: int
    name: str
    capability: tuple[int, int]
    memory: int

    def __str__(self) -> str:
        major, minor = self.capability
        size = self.memory / (1 << 30)
        return f"{self.name}, compute capability {major}.{minor}, {size:.1f} GiB"


@dataclass(frozen=True)
class Driver:
    """What the driver says: the CUDA version it supports and its devices."""

    finding: Finding
    version: tuple[int, int] | None = None
    gpus: tuple[Gpu, ...] = ()


# ---- driver ------------------------------------------------------------------------------------


def probe_driver(load: Callable[[str], Any] = ctypes.CDLL) -> Driver:
    """The driver and its devices; the driver is initialised, as any use of it does."""
    name = "CUDA driver"
    try:
        library = load(DRIVER)
    except OSError as error:
        return Driver(Finding(name, MISSING, f"{DRIVER}: {error}", INSTALL_DRIVER))
    try:
        version = _driver_version(library)
        failed = library.cuInit(0)
        if failed:
            advice = _ADVICE.get(failed, "nvidia-smi may say more")
            found = f"{DRIVER} does not start: {_error_text(library, failed)}"
            return Driver(Finding(name, WRONG, found, advice), version)
        gpus = tuple(_devices(library))
    except Exception as error:
        found = f"{DRIVER} is not a CUDA driver: {error}"
        return Driver(Finding(name, WRONG, found, INSTALL_DRIVER))
    text = f"CUDA {version_text(version)}" if version else "version unknown"
    if version is not None and version < DRIVER_VERSION:
        advice = f"CUDA {version_text(DRIVER_VERSION)} or newer is needed: {INSTALL_DRIVER}"
        return Driver(Finding(name, WRONG, f"{text}, too old", advice), version, gpus)
    return Driver(Finding(name, OK, f"supports {text}"), version, gpus)


def _driver_version(library: Any) -> tuple[int, int] | None:
    number = ctypes.c_int()
    if library.cuDriverGetVersion(ctypes.byref(number)) or not number.value:
        return None
    return number.value // 1000, number.value % 1000 // 10


def _error_text(library: Any, code: int) -> str:
    """The driver's own words for an error."""
    words = ctypes.c_char_p()
    with contextlib.suppress(AttributeError):
        library.cuGetErrorString(code, ctypes.byref(words))
    said = words.value.decode(errors="replace") if words.value else "no explanation"
    return f"{said} (error {code})"


def _devices(library: Any) -> list[Gpu]:
    count = ctypes.c_int()
    if library.cuDeviceGetCount(ctypes.byref(count)):
        return []
    found = []
    for number in range(count.value):
        device = ctypes.c_int()
        if library.cuDeviceGet(ctypes.byref(device), number):
            continue
        name = ctypes.create_string_buffer(256)
        memory = ctypes.c_size_t()
        library.cuDeviceGetName(name, 256, device)
        library.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
        capability = tuple(_attribute(library, what, device) for what in (_MAJOR, _MINOR))
        text = name.value.decode(errors="replace")
        found.append(Gpu(number, text, (capability[0], capability[1]), memory.value))
    return found


def _attribute(library: Any, what: int, device: ctypes.c_int) -> int:
    value = ctypes.c_int()
    library.cuDeviceGetAttribute(ctypes.byref(value), what, device)
    return value.value


def gpu_findings(driver: Driver) -> list[Finding]:
    """One for each device, or one that says there is none."""
    if driver.finding.state != OK:
        return [Finding("GPU", MISSING, "the driver finds none", "see the driver above")]
    if not driver.gpus:
        return [Finding("GPU", MISSING, "the driver has no device", _ADVICE[100])]
    found = []
    for gpu in driver.gpus:
        name = f"GPU {gpu.number}"
        if gpu.capability < CAPABILITY:
            least = f"compute capability {version_text(CAPABILITY)} or more is needed"
            found.append(Finding(name, WRONG, str(gpu), f"too old: {least}"))
        else:
            found.append(Finding(name, OK, str(gpu)))
    return found


# ---- PyCUDA, LLVM ------------------------------------------------------------------------------


def probe_pycuda(driver: Driver | None = None) -> Finding:
    """PyCUDA: whether it is there, loads, and fits the driver."""
    name = "PyCUDA"
    installed = version_of("pycuda")
    if installed is None:
        return Finding(name, MISSING, "not installed", INSTALL_PYCUDA)
    try:
        module = importlib.import_module("pycuda.driver")
        built = tuple(module.get_version()[:2])
    except Exception as error:
        advice = f"it needs {DRIVER}"
        if driver is not None and driver.finding.state == OK:
            advice = "build it again for the CUDA this driver supports, see docs/gpu.md"
        return Finding(name, WRONG, f"{installed} does not load: {error}", advice)
    text = f"{installed}, built for CUDA {version_text(built)}"
    if driver is not None and driver.version and driver.version[0] < built[0]:
        advice = "update the driver, or build PyCUDA for an older CUDA, see docs/gpu.md"
        newest = f"the driver supports only CUDA {version_text(driver.version)}"
        return Finding(name, WRONG, f"{text}; {newest}", advice)
    return Finding(name, OK, text)


def probe_llvm() -> Finding:
    """llvmlite, and whether its LLVM makes code for GPUs."""
    name = "LLVM for GPUs"
    try:
        llvm = importlib.import_module("llvmlite.binding")
        version = tuple(llvm.llvm_version_info)
    except Exception as error:
        return Finding(name, MISSING, f"llvmlite does not load: {error}", "pip install llvmlite")
    text = f"LLVM {version_text(version)}"
    if version[0] < LLVM:
        return Finding(name, WRONG, f"{text}, too old", "pip install --upgrade 'llvmlite>=0.48'")
    try:
        llvm.initialize_all_targets()
        llvm.Target.from_triple("nvptx64-nvidia-cuda")
    except Exception as error:
        advice = "install llvmlite's own wheel: this one was built without NVPTX"
        return Finding(name, WRONG, f"{text} has no NVPTX: {error}", advice)
    return Finding(name, OK, f"{text}, NVPTX")


# ---- what is only useful -----------------------------------------------------------------------


def probe_tools() -> list[Finding]:
    """What is used where it is there."""
    return [_probe_ptxas()]


def _probe_ptxas() -> Finding:
    name = "ptxas"
    advice = "only tests use it; it comes with CUDA, or: pip install nvidia-cuda-nvcc"
    path = shutil.which("ptxas")
    if path is None:
        return Finding(name, MISSING, "not on the path", advice)
    try:
        done = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=20, check=True
        )
        lines = [line for line in done.stdout.splitlines() if "release" in line]
        release = lines[0].split("release")[1].strip()
    except Exception as error:
        return Finding(name, WRONG, f"{path} does not run: {error}", advice)
    return Finding(name, OK, f"{release}, {path}")


# ---- in all ------------------------------------------------------------------------------------


def needed_findings(load: Callable[[str], Any] = ctypes.CDLL) -> list[Finding]:
    """Everything that a session on a GPU needs."""
    driver = probe_driver(load)
    return [driver.finding, *gpu_findings(driver), probe_pycuda(driver), probe_llvm()]


def missing_for_gpu(findings: Sequence[Finding] | None = None) -> str:
    """What keeps sessions from running on a GPU, with advice, as text; '' if nothing does."""
    findings = needed_findings() if findings is None else findings
    gpus = [f for f in findings if f.name.startswith("GPU")]
    lacking = [f for f in findings if f.state != OK and f not in gpus]
    if not lacking and not any(f.state == OK for f in gpus):
        lacking = gpus
    return "; ".join(f"{f.name}: {f.found} ({f.advice})" for f in lacking)

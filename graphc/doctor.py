"""`graphc doctor`: what graphc needs on this machine, what is there, and how to get the rest.

Nothing here raises, whatever is missing.  Imports: findings, and what is looked at, when it is.
"""

from __future__ import annotations

import importlib
import os
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass

from graphc.findings import MISSING, OK, WRONG, Finding, version_of, version_text

NEEDED = {"numpy": "NumPy", "llvmlite": "llvmlite"}
"""What no session runs without, by module."""


@dataclass(frozen=True)
class Checkup:
    """All findings: what the CPU needs, what a GPU needs besides, and what is only useful."""

    cpu: list[Finding]
    gpu: list[Finding]
    useful: list[Finding]

    @property
    def cpu_works(self) -> bool:
        return all(f.state == OK for f in self.cpu)

    @property
    def gpu_works(self) -> bool:
        from graphc.backends.gpu.probe import missing_for_gpu

        return self.cpu_works and not missing_for_gpu(self.gpu)

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        parts = {"cpu": self.cpu, "gpu": self.gpu, "useful": self.useful}
        found: dict[str, object] = {k: [asdict(f) for f in v] for k, v in parts.items()}
        return {"cpu_works": self.cpu_works, "gpu_works": self.gpu_works, **found}

    def __str__(self) -> str:
        lines = ["What graphc needs:"]
        lines += [line for f in self.cpu for line in _lines(f)]
        lines += ["What a GPU needs besides:"]
        lines += [line for f in self.gpu for line in _lines(f)]
        lines += ["Used where it is there:"]
        lines += [line for f in self.useful for line in _lines(f)]
        cpu = "works" if self.cpu_works else "does not work"
        gpu = "can be used" if self.gpu_works else "cannot be used"
        return "\n".join([*lines, f"The CPU {cpu}; a GPU {gpu}."])


def _lines(finding: Finding) -> list[str]:
    lines = [f"  {finding.state:8} {finding.name:14} {finding.found}"]
    return lines + [f"  {'':8} {'':14} -> {finding.advice}"] * bool(finding.advice)


def examine() -> Checkup:
    """Look at everything."""
    from graphc.backends.gpu import probe

    cpu = [_python(), *map(_package, NEEDED), _guarded("processor", _processor)]
    cpu.append(_guarded("compiled code", _runs))
    gpu = probe.needed_findings()
    if not probe.missing_for_gpu(gpu):
        gpu.append(_guarded("code on a GPU", lambda: _runs("code on a GPU", "gpu")))
    useful = [_guarded("cache", _cache), *probe.probe_tools()]
    return Checkup(cpu, gpu, useful)


def _guarded(name: str, look: Callable[[], Finding]) -> Finding:
    """What was found, or why it could not be looked at."""
    try:
        return look()
    except Exception as error:
        words = f"{type(error).__name__}: {error}".strip()
        return Finding(name, WRONG, words, "what stands above may be the reason")


def _python() -> Finding:
    text = f"{platform.python_version()} ({platform.python_implementation()})"
    return Finding("Python", OK, f"{text}, {platform.system()} {platform.machine()}")


def _package(module: str) -> Finding:
    name = NEEDED[module]
    try:
        importlib.import_module(module)
    except ImportError as error:
        state = MISSING if version_of(module) is None else WRONG
        return Finding(name, state, f"does not load: {error}", f"pip install {module}")
    return Finding(name, OK, version_of(module) or "version unknown")


def _processor() -> Finding:
    from graphc.backends.codegen.targets import host_target
    from graphc.backends.llvm.target import Target, binding

    row = host_target()
    version = version_text(binding().llvm_version_info)
    kind = f"{row.name}, vectors of {row.vector_bytes} bytes"
    cores = os.cpu_count() or 1
    return Finding("processor", OK, f"{Target().cpu}: {kind}, {cores} cores; LLVM {version}")


def _runs(name: str = "compiled code", device: str = "cpu") -> Finding:
    """A program compiled and run."""
    from graphc.graph import Graph
    from graphc.ops.state import placeholder
    from graphc.session import Session

    with Graph().as_default():
        x = placeholder("f32", (3,))
        y = x * x + 1
        with Session(device=device) as session:
            found = session.run(y, {x: [1.0, 2.0, 3.0]}).tolist()
    if found != [2.0, 5.0, 10.0]:
        return Finding(name, WRONG, f"x * x + 1 is {found} for 1, 2, 3", "report this")
    return Finding(name, OK, "runs")


def _cache() -> Finding:
    from graphc.cache import cache_text, open_cache

    cache, text = open_cache(), cache_text()
    if cache is None:
        return Finding("cache", MISSING, text, "GRAPHC_CACHE names a folder for compiled code")
    if text != cache.folder:
        return Finding("cache", WRONG, text, "see docs/cache.md")
    return Finding("cache", OK, text)

"""graphc and its peers on the same workloads, in turn, in one session; prints the ratios.

    python benchmarks/compare.py                              what is installed beside graphc
    python benchmarks/compare.py gemm512 lenet --rounds 5
    python benchmarks/compare.py resnet50_train32 --device gpu --compile
    python benchmarks/compare.py --python torch=venv/bin/python --python onnx=other/bin/python

PyTorch, JAX, ONNX Runtime and OpenVINO are found in this Python, or in the one that `--python`
names for them.  `--peer NAME=COMMAND` adds any other program: it is given the workload, --threads
and --secs, and prints a line of JSON with `median_ms`.  A peer that fails on a workload does not
take part in it.

Every measurement is a process of its own, and nothing else should run: `busy` is the most that
other processes took of a processor while a number was measured.  The time of a program is the
median over rounds of its medians; the ratio is the best peer's time over graphc's.  On a machine
shared with others two processors may be one core for a while, which no counter tells: `least` is
the same ratio of the shortest call that each program ever took, which such phases hardly touch.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent

WORKLOADS = (
    *("call100", "chain_big", "chain_small", "xent", "layernorm"),
    *("gemm128", "gemm256", "gemm512", "gemm1024", "gemm2048", "cs231n", "mlp", "lenet"),
    *("alexnet_inf1", "alexnet_inf16", "alexnet_train16"),
    *("alexnetcaffe_inf1", "alexnetcaffe_inf16", "alexnetcaffe_train16"),
    *("vgg16_inf1", "googlenet_inf1", "resnet50_inf1", "resnet50_inf16", "resnet50_train8"),
    *("resnet20_train128", "resnet110_train32", "lstm_train", "transformer_fb"),
)

TORCH_MODES = ("eager", "channels_last", "malloc")


@dataclass
class Contestant:
    """A program that times a workload."""

    name: str
    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)

    def measure(self, workload: str, options: list[str], limit: float) -> dict[str, Any] | None:
        """Its line of JSON, or None if it cannot run this workload."""
        try:
            done = subprocess.run(
                [*self.command, workload, *options],
                capture_output=True,
                text=True,
                timeout=limit,
                env={**os.environ, **self.environment},
                check=False,
            )
        except subprocess.TimeoutExpired:
            return None
        lines = done.stdout.strip().splitlines()
        if done.returncode or not lines:
            return None
        found: dict[str, Any] = json.loads(lines[-1])
        return found


def _has(python: str, module: str) -> bool:
    found = subprocess.run([python, "-c", f"import {module}"], capture_output=True, check=False)
    return found.returncode == 0


def contestants(arguments: argparse.Namespace) -> list[Contestant]:
    """graphc, then every peer that is installed."""
    pythons = dict(entry.split("=", 1) for entry in arguments.python)
    off = {"GRAPHC_CACHE": "off"}
    rounded = ["--precision", arguments.precision]
    on = ["--device", arguments.device, *rounded]
    found = [Contestant("graphc", [sys.executable, str(HERE / "run.py"), *on], off)]
    gpu = arguments.device.startswith("gpu")
    on = ["--device", "cuda" if gpu else "cpu", *rounded]
    torch = pythons.get("torch", sys.executable)
    if _has(torch, "torch"):
        modes = TORCH_MODES[:-1] if gpu else TORCH_MODES
        for mode in (*modes, *(("compile",) if arguments.compile else ())):
            script = str(HERE / "peer_torch.py")
            found.append(Contestant(f"torch {mode}", [torch, script, "--mode", mode, *on]))
    jax = pythons.get("jax", sys.executable)
    if _has(jax, "jax"):
        found.append(Contestant("jax", [jax, str(HERE / "peer_jax.py"), *on]))
    onnx = pythons.get("onnx", sys.executable)
    for mode in ("onnxruntime", "openvino"):
        if arguments.models and not gpu and _has(onnx, mode):
            options = ["--models", str(arguments.models), "--mode", mode]
            found.append(Contestant(mode, [onnx, str(HERE / "peer_onnx.py"), *options]))
    for entry in arguments.peer:
        name, command = entry.split("=", 1)
        found.append(Contestant(name, shlex.split(command)))
    return found


@dataclass
class Row:
    """What was measured of a workload: the medians of each program, round by round."""

    workload: str
    times: dict[str, list[float]] = field(default_factory=dict)
    shortest: dict[str, float] = field(default_factory=dict)
    memory: dict[str, float] = field(default_factory=dict)
    busy: float = 0.0

    def add(self, name: str, found: dict[str, Any]) -> None:
        self.times.setdefault(name, []).append(found["median_ms"])
        least = found.get("min_ms", found["median_ms"])
        self.shortest[name] = min(least, self.shortest.get(name, least))
        self.memory[name] = found.get("peak_rss_mb", 0.0)
        self.busy = max(self.busy, found.get("foreign_cpu", 0.0))

    def median(self, name: str) -> float:
        return statistics.median(self.times[name])

    def best(self) -> str | None:
        """The fastest peer."""
        peers = [name for name in self.times if name != "graphc"]
        return min(peers, key=self.median) if peers else None

    def __str__(self) -> str:
        ours, best = self.median("graphc"), self.best()
        text = f"{self.workload:22s} {ours:10.4g} "
        if best is None:
            return text + "         -"
        ratio = self.median(best) / ours
        least = min(t for name, t in self.shortest.items() if name != "graphc")
        text += f"{self.median(best):10.4g}  {best:20s} {ratio:5.2f}  "
        text += f"{least / self.shortest['graphc']:5.2f}   {self.busy:4.2f}   "
        others = sorted((n for n in self.times if n not in ("graphc", best)), key=self.median)
        return text + ", ".join(f"{name} {self.median(name) / ours:.2f}" for name in others)


def run(workload: str, programs: list[Contestant], arguments: argparse.Namespace) -> Row | None:
    """Let the programs take turns."""
    row = Row(workload)
    out: set[str] = set()
    options = ["--threads", str(arguments.threads), "--secs", str(arguments.secs)]
    for _ in range(arguments.rounds):
        for program in programs:
            if program.name in out:
                continue
            found = program.measure(workload, options, arguments.limit)
            if found is None:
                out.add(program.name)
                continue
            row.add(program.name, found)
    return row if "graphc" in row.times else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help=" ".join(WORKLOADS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--secs", type=float, default=2.0, help="how long to measure, each time")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds a process may take")
    parser.add_argument("--python", action="append", default=[], metavar="torch|jax|onnx=PYTHON")
    parser.add_argument("--models", type=Path, help="the folder of peer_onnx_export.py")
    parser.add_argument("--device", default="cpu", help="cpu or gpu; peers then use CUDA")
    parser.add_argument("--precision", choices=("f32", "tf32", "bf16"), default="f32")
    parser.add_argument("--compile", action="store_true", help="torch.compile as well")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=COMMAND")
    parser.add_argument("--json", type=Path, help="where to write every number")
    arguments = parser.parse_args()
    programs = contestants(arguments)
    print(f"{'':22s} {'graphc ms':>10s} {'best ms':>10s}  {'best peer':20s} ratio  least   busy")
    rows: list[Row] = []
    for workload in arguments.workloads or WORKLOADS:
        row = run(workload, programs, arguments)
        if row is None:
            print(f"{workload:22s} graphc failed", flush=True)
            continue
        rows.append(row)
        print(row, flush=True)
        if arguments.json:
            kept = {
                r.workload: {
                    "ms": r.times,
                    "min_ms": r.shortest,
                    "rss_mb": r.memory,
                    "busy": r.busy,
                }
                for r in rows
            }
            arguments.json.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()

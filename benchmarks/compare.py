"""graphc and its peers on the same workloads, in turn, in one session; prints the ratios.

    python benchmarks/compare.py                              what is installed beside graphc
    python benchmarks/compare.py gemm512 lenet --rounds 9
    python benchmarks/compare.py resnet50_train32 --device gpu --compile
    python benchmarks/compare.py --python torch=venv/bin/python --python onnx=other/bin/python

PyTorch, JAX, ONNX Runtime and OpenVINO are found in this Python, or in the one that `--python`
names for them.  `--peer NAME=COMMAND` adds any other program: it is given the workload, --threads
and --secs, and prints a line of JSON with `median_ms`.  A peer that fails on a workload does not
take part in it.

Every program is a process of its own, made ready once for a workload.  Then they take turns, a few
rounds, and are stopped while others have theirs: the speed of a shared machine drifts, so what is
compared was measured within seconds.  Nothing else should run: `busy` is what other processes took
of a processor meanwhile, at most.  Times are medians over rounds of the median of each turn; the
ratio is the median over rounds of the peer's time over graphc's in that round, the best peer the
one with the least.  On a machine shared with others two processors may be one core for a while,
which no counter tells: `least` is the ratio of the shortest call that each program ever took, which
such phases hardly touch.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from timing import READY, TURNS

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


class Running:
    """A contestant at work: made ready when it is created, then told when its turns are."""

    def __init__(self, program: Contestant, arguments: list[str], rounds: int, limit: float):
        self.name, self.limit = program.name, limit
        self.result: dict[str, Any] | None = None
        self.failed = False
        self.process = subprocess.Popen(
            [*program.command, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **program.environment, TURNS: str(rounds)},
        )
        self._proceed()

    def turn(self) -> None:
        """Let it measure, if it has not said all it has to say."""
        if self.failed or self.result:
            return
        assert self.process.stdin
        self.process.send_signal(signal.SIGCONT)
        try:
            print(file=self.process.stdin, flush=True)
        except BrokenPipeError:
            self.failed = True
            return
        self._proceed()

    def _proceed(self) -> None:
        """Wait until it has come to its next turn, and is stopped, or to its result."""
        assert self.process.stdout
        ends = threading.Timer(self.limit, self.process.kill)
        ends.start()
        lines: list[str] = []
        for line in self.process.stdout:
            if line.strip() == READY:
                self.process.send_signal(signal.SIGSTOP)
                break
            lines.append(line)
        else:
            self.failed = self.process.wait() != 0 or not lines
            if not self.failed:
                self.result = json.loads(lines[-1])
        ends.cancel()

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


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
        self.times[name] = found.get("turns_ms", [found["median_ms"]])
        self.shortest[name] = found.get("min_ms", found["median_ms"])
        self.memory[name] = found.get("peak_rss_mb", 0.0)
        self.busy = max(self.busy, found.get("foreign_cpu", 0.0))

    def median(self, name: str) -> float:
        return statistics.median(self.times[name])

    def ratio(self, name: str) -> float:
        """The time of a peer over graphc's."""
        theirs, ours = self.times[name], self.times["graphc"]
        if len(theirs) != len(ours):
            return self.median(name) / self.median("graphc")
        return statistics.median([a / b for a, b in zip(theirs, ours, strict=True)])

    def peers(self) -> list[str]:
        """The fastest first."""
        return sorted((name for name in self.times if name != "graphc"), key=self.ratio)

    def __str__(self) -> str:
        text = f"{self.workload:22s} {self.median('graphc'):10.4g} "
        if not self.peers():
            return text + "         -"
        best, *others = self.peers()
        least = min(self.shortest[name] for name in self.peers()) / self.shortest["graphc"]
        text += f"{self.median(best):10.4g}  {best:20s} {self.ratio(best):5.2f}  "
        text += f"{least:5.2f}   {self.busy:4.2f}   "
        return text + ", ".join(f"{name} {self.ratio(name):.2f}" for name in others)


def run(workload: str, programs: list[Contestant], arguments: argparse.Namespace) -> Row | None:
    """Let the programs take turns."""
    options = ["--threads", str(arguments.threads), "--secs", str(arguments.secs)]
    rounds = arguments.rounds
    running: list[Running] = []
    try:
        for program in programs:
            running.append(Running(program, [workload, *options], rounds, arguments.limit))
        for _ in range(rounds):
            for program in running:
                program.turn()
    finally:
        for program in running:
            program.end()
    row = Row(workload)
    for program in running:
        if program.result:
            row.add(program.name, program.result)
    return row if "graphc" in row.times else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help=" ".join(WORKLOADS))
    parser.add_argument("--rounds", type=int, default=5, help="turns of each program")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--secs", type=float, default=0.5, help="how long a turn takes")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds a turn may take")
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

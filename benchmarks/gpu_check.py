"""Everything that needs a GPU, in one go, within ten minutes.

    python benchmarks/gpu_check.py --out benchmarks/results/h200.json
    python benchmarks/gpu_check.py --device emulated-gpu --out rehearsal.json

The second rehearses the first on a machine without a GPU, with tiny sizes.  Sections do not depend
on each other: one that fails says why, and the next runs; after each, everything found so far is
written.  Peers that are installed in this Python run the same workloads.  When the time is over,
what has not run is left out, and said to be.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import metadata, util
from pathlib import Path
from typing import Any

import numpy as np

import graphc as gx

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent

Result = dict[str, Any]


class OutOfTimeError(Exception):
    """The minutes are over."""


@dataclass
class Check:
    """What is checked, until when, and what was found.

    goals   what was wanted of a number, by its name: reached, or not
    """

    device: str
    until: float
    found: Result = field(default_factory=dict)
    goals: Result = field(default_factory=dict)

    @property
    def small(self) -> bool:
        """Whether this is a rehearsal."""
        return not self.device.startswith("gpu")

    @property
    def peer_device(self) -> str:
        return "cpu" if self.small else "cuda"

    def left(self, wanted: float) -> float:
        """So many seconds, or what is left of them."""
        left = self.until - time.monotonic()
        if left < min(wanted, 10.0):
            raise OutOfTimeError(f"out of time: {max(left, 0):.0f} s are left")
        return min(wanted, left)

    def goal(self, name: str, value: float, wanted: float, at_most: bool = False) -> None:
        """Record a number beside the one it should reach."""
        reached = value <= wanted if at_most else value >= wanted
        self.goals[name] = {"value": value, "wanted": wanted, "reached": bool(reached)}
        sign = "<=" if at_most else ">="
        print(f"  {name}: {value:.4g} (wanted {sign} {wanted}): {'reached' if reached else 'NOT'}")


def output_of(command: Sequence[str], limit: float) -> tuple[int | None, str]:
    """Exit status and output of a program; status None, and what there was, if it took longer."""
    with tempfile.TemporaryFile("w+") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT)
        status: int | None
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            status = None
        file.seek(0)
        return status, file.read()


# ---- what is timed, in processes of their own --------------------------------------------------


def peers() -> Iterator[tuple[str, list[str]]]:
    """The peers that are installed here: name and command."""
    if util.find_spec("torch"):
        for mode in ("eager", "channels_last", "compile"):
            yield f"torch {mode}", [str(HERE / "peer_torch.py"), "--mode", mode]
    if util.find_spec("jax"):
        yield "jax", [str(HERE / "peer_jax.py")]


PATIENCE = 80.0
"""Seconds that a program may take for its workloads: what it has measured by then counts."""


def timed(
    check: Check, script: list[str], device: str, workloads: Sequence[str], *options: str
) -> dict[str, Result]:
    """What a program measures of workloads, by workload; what failed is missing."""
    seconds = "0.2" if check.small else "0.7"
    command = [sys.executable, *script, *workloads, "--secs", seconds, "--device", device, *options]
    limit = check.left(PATIENCE)
    status, said = output_of(command, limit)
    lines = [line for line in said.splitlines() if line.startswith('{"peer"')]
    found = {line["workload"]: line for line in map(json.loads, lines)}
    if status != 0:
        why = f"no more after {limit:.0f} s" if status is None else f"status {status}"
        print(f"  {shlex.join(command[1:])}: {why}\n    {said[-600:]}")
    return found


def ours(check: Check, workloads: Sequence[str], *options: str) -> dict[str, Result]:
    """graphc's own times."""
    return timed(check, [str(HERE / "run.py")], check.device, workloads, *options)


# ---- sections ----------------------------------------------------------------------------------


def machine(check: Check) -> Result:
    """Where this is."""
    from graphc.doctor import examine

    found = examine()
    print(found)
    smi = [
        "nvidia-smi",
        "--query-gpu=name,driver_version,memory.total,clocks.max.sm",
        "--format=csv",
    ]
    packages = ("graphc", "numpy", "llvmlite", "pycuda", "torch", "jax", "cupy-cuda13x", "triton")
    return {
        "doctor": found.as_dict(),
        "platform": platform.platform(),
        "processor": platform.processor(),
        "nvidia_smi": _said(smi),
        "commit": _said(["git", "rev-parse", "HEAD"]),
        "packages": {p: _version(p) for p in packages},
    }


def _said(command: list[str]) -> str:
    try:
        return output_of(command, 20)[1].strip()
    except OSError as error:
        return str(error)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def tests(check: Check) -> Result:
    """The tests that are marked gpu."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short"]
    if check.small:
        command += ["tests/test_gpu_operators.py", "-k", "emulated and (tanh or argmax)"]
    else:
        command += ["-m", "gpu", *["-n", "6"] * bool(util.find_spec("xdist"))]
    status, said = output_of(command, check.left(180.0))
    last = said.strip().splitlines()[-1] if said.strip() else ""
    print(said[-3000:] if status else f"  {last}")
    check.goal("tests fail", float(status != 0), 0.0, at_most=True)
    return {"command": shlex.join(command[1:]), "status": status, "said": last, "end": said[-8000:]}


def digits(check: Check) -> Result:
    """LeNet learns handwritten digits, as on the CPU."""
    from graphc.demo import load_digits

    data = load_digits()
    steps, batch = (2, 8) if check.small else (300, 64)
    found = {d: _digits(d, data, steps, batch) for d in (check.device, "cpu")}
    for device, one in found.items():
        print(f"  {device}: accuracy {one['accuracy']:.4f}, {one['ms_per_step']:.3f} ms per step")
    loss = found["cpu"]["accuracy"] - found[check.device]["accuracy"]  # NaN reaches nothing
    check.goal("digits: accuracy lost", loss, 0.01, at_most=True)
    return {"steps": steps, "batch": batch, **found}


def _digits(device: str, data: Any, steps: int, batch: int) -> Result:
    from graphc.demo import build_lenet

    with gx.Graph(seed=0).as_default() as graph:
        model = build_lenet(0.05, steps)
        with gx.Session(graph, device=device) as session:
            session.run(gx.global_variables_initializer())
            rng = np.random.default_rng(0)
            times = []
            for _ in range(steps):
                chosen = rng.integers(0, len(data.images), batch)
                feeds = {model.images: data.images[chosen], model.labels: data.labels[chosen]}
                before = time.perf_counter()
                loss, _ = session.run([model.loss, model.train_step], feeds)
                times.append(time.perf_counter() - before)
            count = 40 if batch < 64 else len(data.test_images)
            tested = {
                model.images: data.test_images[:count],
                model.labels: data.test_labels[:count],
            }
            accuracy = float(session.run(model.accuracy, tested))
    ms = 1e3 * float(np.median(times))
    return {"accuracy": accuracy, "loss": float(loss), "ms_per_step": ms, "first_s": times[0]}


def overhead(check: Check) -> Result:
    """What a run costs that computes next to nothing, and one of twenty kernels."""
    workloads = ["call", "call100", "kernels20"]
    found = {"graphc": ours(check, workloads)}
    for name, script in peers():
        if name in ("torch eager", "jax"):
            found[name] = timed(check, script, check.peer_device, workloads)
    _print_times(found)
    if not check.small:
        microseconds = 1e3 * found["graphc"]["kernels20"]["median_ms"]
        check.goal("20 kernels, microseconds", microseconds, 60.0, at_most=True)
    return found


def bandwidth(check: Check) -> Result:
    """Fused elementwise code and reductions beside a copy of as many bytes."""
    n, rows = (4096, 4) if check.small else (1 << 26, 1 << 16)
    traffic = {
        f"chain{n}": 24.0 * n,
        f"row_sums{rows}": 4.0 * 4096 * rows,
        f"column_sums{rows}": 4.0 * 4096 * rows,
        "layernorm": 8.0 * 4096 * 1024,
        "xent": 8.0 * 4096 * 1000,
    }
    if check.small:
        traffic = {k: v for k, v in traffic.items() if k[-1].isdigit()}
    found = ours(check, list(traffic))
    result: Result = {}
    for name, size in traffic.items():
        if name not in found:
            continue
        copy = _copy_seconds(check.device, int(size / 2))
        rate, copied = (size / s / 1e9 for s in (found[name]["min_ms"] / 1e3, copy))
        result[name] = {**found[name], "GB/s": rate, "copy GB/s": copied, "share": rate / copied}
        print(f"  {name}: {rate:.0f} GB/s, a copy {copied:.0f} GB/s")
        if not check.small and name[-1].isdigit():
            check.goal(f"{name}: share of a copy", rate / copied, 0.85)
    return result


def _copy_seconds(device: str, size: int) -> float:
    """The time of copying so many bytes on the device, waited for as a run is."""
    from graphc.backends.gpu.devices import open_device

    gpu = open_device("gpu:0" if device == "gpu" else device).device
    with gpu.active():
        source, target = gpu.allocate(size), gpu.allocate(size)
        times = []
        try:
            for _ in range(30):
                before = time.perf_counter()
                gpu.copy_within(target, source, size)
                gpu.synchronize()
                times.append(time.perf_counter() - before)
        finally:
            gpu.free(source)
            gpu.free(target)
    return min(times)


def products(check: Check) -> Result:
    """Matrix products in every precision, beside cuBLAS through torch."""
    sizes = (32,) if check.small else (2048, 4096, 8192)
    names = [f"product{n}" for n in sizes]
    result: Result = {"error": _product_errors(check)}
    for precision in ("f32", "tf32", "bf16"):
        found = {"graphc": ours(check, names, "--precision", precision)}
        for name, script in peers():
            if name == "torch eager":
                options = ("--precision", precision)
                found[name] = timed(check, script, check.peer_device, names, *options)
        for n in sizes:
            rates = {
                who: 2e-9 * n**3 / times[f"product{n}"]["min_ms"]
                for who, times in found.items()
                if f"product{n}" in times
            }
            rounded = {who: f"{rate:.1f}" for who, rate in rates.items()}
            print(f"  {precision} {n}: TFLOP/s {rounded}")
            result[f"{precision} {n}"] = rates
            others = [rate for who, rate in rates.items() if who != "graphc"]
            if not check.small and others and "graphc" in rates:
                share = rates["graphc"] / max(others)
                check.goal(f"{precision} {n}: share of the best peer", share, 0.8)
    return result


def _product_errors(check: Check) -> Result:
    """The relative error of a product, by precision, in the norm of all its elements."""
    n = 512  # in smaller ones nothing is rounded: their tiles are too small for tensor cores
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((n, n), np.float32) for _ in range(2))
    exact = a.astype(np.float64) @ b
    found = {}
    for precision, limit in (("f32", 1e-6), ("tf32", 1e-3), ("bf16", 1e-2)):
        with gx.Graph().as_default() as graph:
            x, y = (gx.placeholder("f32", (n, n)) for _ in range(2))
            with gx.Session(graph, device=check.device, precision=precision) as session:
                value = session.run(x @ y, {x: a, y: b})
        error = float(np.linalg.norm(value - exact) / np.linalg.norm(exact))
        found[precision] = error
        check.goal(f"{precision}: relative error", error, limit, at_most=True)
        if precision != "f32":
            check.goal(f"{precision}: error that shows tensor cores at work", error, 1e-5)
    return found


def networks(check: Check) -> Result:
    """ResNet-50 in training and inference, AlexNet's images per second, beside the peers."""
    names = ["resnet50_train32", "resnet50_inf32", "alexnet_inf1", "alexnet_inf128"]
    if check.small:
        names = ["cs231n"]
    rounded = ("--precision", "tf32")
    found = {"graphc": ours(check, names)}
    scripts = dict(peers())
    try:
        found["graphc tf32"] = ours(check, names, *rounded)
        for name in ("torch eager", "jax", "torch compile", "torch channels_last"):
            if name in scripts:
                found[name] = timed(check, scripts[name], check.peer_device, names)
        if "torch channels_last" in scripts:
            script = scripts["torch channels_last"]
            found["torch tf32"] = timed(check, script, check.peer_device, names, *rounded)
    except OutOfTimeError as error:
        print(f"  {error}")
    _print_times(found)
    for workload in names:
        batch = workload.rpartition("_")[2].lstrip("inftra")
        if batch.isdigit() and workload in found["graphc"]:
            rate = 1e3 * int(batch) / found["graphc"][workload]["median_ms"]
            print(f"  {workload}: {rate:.0f} images per second")
    return found


def _print_times(found: dict[str, dict[str, Result]]) -> None:
    for workload in found["graphc"]:
        rows = {who: times[workload] for who, times in found.items() if workload in times}
        text = ", ".join(f"{who} {row['median_ms']:.4g}" for who, row in rows.items())
        print(f"  {workload}, ms: {text}")


SECTIONS: tuple[Callable[[Check], Result], ...] = (
    *(machine, tests, digits, overhead, bandwidth, products, networks),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--device", default="gpu", help="gpu, gpu:1, ...; emulated-gpu rehearses")
    parser.add_argument("--out", type=Path, help="where to write everything that was found")
    parser.add_argument("--minutes", type=float, default=9.5)
    names = [s.__name__ for s in SECTIONS]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="SECTION")
    options = parser.parse_args()
    check = Check(options.device, time.monotonic() + 60 * options.minutes)
    check.found["command"] = shlex.join(sys.argv)
    check.found["when"] = time.strftime("%Y-%m-%d %H:%M:%S %z")
    failed = []
    for section in SECTIONS:
        name = section.__name__
        if name not in options.only:
            continue
        started = time.monotonic()
        print(f"== {name}", flush=True)
        try:
            found = section(check)
        except OutOfTimeError as error:
            print(f"  {error}")
            found = {"failed": str(error)}
        except Exception:
            traceback.print_exc(file=sys.stdout)
            found = {"failed": traceback.format_exc()}
        if "failed" in found:
            failed.append(name)
        check.found[name] = {"seconds": round(time.monotonic() - started, 1), **found}
        _write(options.out, check)
    missed = [name for name, goal in check.goals.items() if not goal["reached"]]
    print(f"== {len(check.goals) - len(missed)} goals reached, not: {missed}; failed: {failed}")
    return 1 if failed or missed else 0


def _write(path: Path | None, check: Check) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"goals": check.goals, **check.found}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())

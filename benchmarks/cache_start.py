"""How a process starts with what earlier ones left in the cache on disk.

    cache_start.py [NETWORK ...]        first step of each network without and with a cache
    cache_start.py --processes 64       so many processes at once on an empty cache, all checked

Every measurement is `compile_time.py NETWORK` in fresh processes with a cache of their own, in a
temporary folder.  `cold` and `warm` are seconds from `import graphc` to the end of the first
training step; `cpu` is processor time, which other programs on the machine disturb less.  Prints
one JSON line per network; exits with 1 if losses differ, if something was compiled or planned again
with a full cache, or if a process failed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
DEFAULT = ("mlp", "residual_mlp320", "lenet", "resnet110", "resnet50")


def start(network: str, cache: str, threads: int, batch: int) -> subprocess.Popen[str]:
    """A fresh process that trains one step of a network."""
    command = [sys.executable, str(HERE / "compile_time.py"), network]
    command += ["--batch", str(batch), "--threads", str(threads)]
    environment = {**os.environ, "GRAPHC_CACHE": cache}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def result(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What a process printed; ends this program if it failed."""
    out, _ = process.communicate()
    if process.returncode:
        sys.exit(f"a process ended with {process.returncode}")
    found: dict[str, Any] = json.loads(out)
    return found


def is_warm(found: dict[str, Any]) -> bool:
    """Whether nothing was planned or compiled."""
    return found["plans"] == 0 and found["modules"] == 0


def compare(network: str, repeat: int, threads: int, batch: int) -> bool:
    """Measure one network without and with a cache; whether both did the same."""
    with tempfile.TemporaryDirectory() as folder:
        cache = os.path.join(folder, "cache")
        # one step beforehand: the interpreter's own files are then in memory
        result(start("mlp", "off", threads, batch))
        cold = result(start(network, cache, threads, batch))
        warm = [result(start(network, cache, threads, batch)) for _ in range(repeat)]
        files = [p.stat().st_size for p in Path(cache).iterdir()]
    median = {
        k: round(statistics.median(w[k] for w in warm), 4)
        for k in ("import", "build", "differentiate", "first_step", "total", "cpu")
    }
    right = all(is_warm(w) and repr(w["loss"]) == repr(cold["loss"]) for w in warm)
    line = {
        "network": network,
        "cold": cold["total"],
        "warm": median["total"],
        "cold_cpu": cold["cpu"],
        "warm_cpu": median.pop("cpu"),
        "of_warm": {k: v for k, v in median.items() if k != "total"},
        "bytes": sum(files),
        "right": right,
    }
    print(json.dumps(line), flush=True)
    return right


def at_once(processes: int, network: str, batch: int) -> bool:
    """Start many processes on an empty cache; whether all are right and what they left is whole."""
    alone = result(start(network, "off", 1, batch))
    with tempfile.TemporaryDirectory() as folder:
        cache = os.path.join(folder, "cache")
        began = time.perf_counter()
        running = [start(network, cache, 1, batch) for _ in range(processes)]
        found = [result(process) for process in running]
        seconds = time.perf_counter() - began
        after = result(start(network, cache, 1, batch))
        left = [p.name for p in Path(cache).iterdir()]
    losses = {repr(f["loss"]) for f in (*found, after)}
    line = {
        "network": network,
        "processes": processes,
        "seconds": round(seconds, 2),
        "found_all_compiled": sum(map(is_warm, found)),
        "afterwards_all_compiled": is_warm(after),
        "files": len(left),
        "temporary_files": sum(name.endswith(".tmp") for name in left),
        "right": losses == {repr(alone["loss"])},
    }
    print(json.dumps(line), flush=True)
    return bool(line["right"] and is_warm(after) and not line["temporary_files"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("networks", nargs="*", default=[], metavar="NETWORK")
    parser.add_argument("--processes", type=int, help="start so many at once")
    parser.add_argument("--repeat", type=int, default=5, help="warm starts per network")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=2)
    options = parser.parse_args()
    if options.processes:
        network = (options.networks or ["mlp"])[0]
        right = [at_once(options.processes, network, options.batch)]
    else:
        right = [
            compare(network, options.repeat, options.threads, options.batch)
            for network in options.networks or DEFAULT
        ]
    sys.exit(not all(right))


if __name__ == "__main__":
    main()

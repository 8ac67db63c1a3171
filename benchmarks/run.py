"""Time workloads and print a JSON line for each: `python benchmarks/run.py WORKLOAD [--threads N]`.

Run one workload per process on a quiet machine: `foreign_cpu` is how many CPUs other processes
used meanwhile, and `steal` how many the host took away.  Times are in milliseconds per call.
"""

from __future__ import annotations

import argparse
import json
import time

STARTED = time.perf_counter()

from timing import measure, peak_rss_mb, pin_if_single  # noqa: E402
from workloads import find_workload  # noqa: E402  (its import time is part of the result)

import graphc as gx  # noqa: E402

IMPORTED = time.perf_counter() - STARTED


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("workload", nargs="+")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--secs", type=float, default=4.0, help="how long to measure")
    parser.add_argument("--device", default="cpu", help="cpu, reference, gpu, emulated-gpu")
    parser.add_argument("--precision", choices=("f32", "tf32", "bf16"), default="f32")
    arguments = parser.parse_args()
    pin_if_single(arguments.threads)
    for name in arguments.workload:
        print(json.dumps(timed(name, arguments)), flush=True)


def timed(name: str, arguments: argparse.Namespace) -> dict[str, object]:
    """What was measured of a workload."""
    with gx.Graph(seed=0).as_default() as graph:
        options = {"device": arguments.device, "precision": arguments.precision}
        with gx.Session(graph, threads=arguments.threads, **options) as session:
            workload = find_workload(name)(session)
            found = measure(workload.call, arguments.secs)
    result: dict[str, object] = {
        "peer": "graphc",
        "workload": name,
        "threads": arguments.threads,
        "mode": arguments.device,
        "precision": arguments.precision,
        **found,
        "import_s": round(IMPORTED, 6),
        "version": getattr(gx, "__version__", ""),
    }
    if workload.flop:
        result["gflop"] = round(workload.flop / 1e9, 6)
        result["gflops"] = round(workload.flop / found["median_ms"] / 1e6, 3)
        result["gflops_best"] = round(workload.flop / found["min_ms"] / 1e6, 3)
    result["peak_rss_mb"] = round(peak_rss_mb(), 1)
    return result


if __name__ == "__main__":
    main()

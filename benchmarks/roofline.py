"""What each kernel of a workload achieves: `python benchmarks/roofline.py WORKLOAD [--by kernel]`.

Steps are traced one by one on one thread, the fastest of several runs each, and compared with what
a core of this machine can do: multiply-adds from registers, and copies of memory no cache holds.
`--json` also writes every step.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from workloads import find_workload

import graphc as gx
from graphc.trace import Table


def traced(name: str, runs: int) -> gx.Trace:
    """A trace of one call, each step as fast as in the fastest of its runs."""
    with gx.Graph(seed=0).as_default() as graph, gx.Session(graph, threads=1) as session:
        workload = find_workload(name)(session)
        workload.call()
        workload.call()
        found = []
        for _ in range(runs):
            trace = gx.Trace(roofline=gx.measure_roofline())
            options = gx.RunOptions(trace=trace)
            session.run(workload.fetches, workload.feeds, options=options)
            found.append(trace.events)
    best = gx.Trace(roofline=gx.measure_roofline())
    best.events = [min(events, key=lambda e: e.seconds) for events in zip(*found, strict=True)]
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("workload")
    parser.add_argument("--rows", type=int, default=40)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--by", choices=("step", "kernel", "operator", "line"), default="step")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    trace = traced(arguments.workload, arguments.runs)
    roofline = gx.measure_roofline()
    print(
        f"{arguments.workload}: {1e3 * trace.seconds:.2f} ms in {len(trace.events)} steps; one core"
        f" does {roofline.flops / 1e9:.0f} GFLOP/s, {roofline.bandwidth / 1e9:.1f} GB/s"
    )
    if arguments.by == "step":
        print(trace.table(arguments.rows))
    else:
        tables = {"kernel": trace.by_kernel, "operator": trace.by_op, "line": trace.by_line}
        print(Table(tables[arguments.by]()[: arguments.rows]))
    if arguments.json:
        steps = [
            {"label": e.label, "ms": 1e3 * e.seconds, "flop": e.flops, "bytes": e.bytes}
            for e in trace.events
        ]
        arguments.json.write_text(json.dumps(steps, indent=1) + "\n")


if __name__ == "__main__":
    main()

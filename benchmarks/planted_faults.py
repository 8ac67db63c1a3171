"""The debug mode's catch: mistakes planted in passes and kernels, and what `gx.check` blames.

    python benchmarks/planted_faults.py [NAME ...]

Every fault is checked with and without being planted, so false alarms show too; then random graphs
are checked on the compiler as it is.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import graphc as gx
from tests.planted_faults import FAULTS, Fault
from tests.random_graphs import random_graph

GRAPHS = 100
"""Random graphs that must pass."""


def judged(fault: Fault) -> tuple[str, str]:
    """Whether a fault was found and located, and what was blamed."""
    gx.reset_default_graph()
    fetches, feeds = fault.case()
    with gx.Session(device="reference") as session:
        session.run(gx.global_variables_initializer())
        before = gx.check(fetches, feeds, session, fault.gradients)
        if before.finding is not None:
            return "false alarm", before.finding.stage
        with fault.planted():
            found = gx.check(fetches, feeds, session, fault.gradients).finding
    if found is None:
        return "missed", ""
    blamed = f"{found.stage}:{found.rule}" if found.rule else found.stage
    right = found.stage in fault.where or blamed in fault.where
    return "located" if right else "found", blamed


def false_alarms() -> int:
    """How many right graphs are called wrong."""
    count = 0
    for seed in range(GRAPHS):
        made = random_graph(seed)
        with made.graph.as_default(), gx.Session(device="reference") as session:
            session.run(gx.global_variables_initializer())
            fetches = [*made.fetches, *[u.op for u in made.updates]]
            report = gx.check(fetches, made.feeds, session)
            if not report.ok:
                print(f"seed {seed}: {report.finding}")
                count += 1
    return count


def main() -> None:
    chosen = [f for f in FAULTS if not sys.argv[1:] or f.name in sys.argv[1:]]
    started = time.process_time()
    results = []
    for fault in chosen:
        result, blamed = judged(fault)
        results.append(result)
        print(f"{result:12} {fault.name:58} {blamed}")
    seconds = time.process_time() - started
    print(f"{results.count('located')} of {len(chosen)} located, {seconds:.1f} s of CPU time")
    if not sys.argv[1:]:
        started = time.process_time()
        alarms = false_alarms()
        seconds = time.process_time() - started
        print(f"{alarms} false alarms on {GRAPHS} random graphs, {seconds:.1f} s")


if __name__ == "__main__":
    main()

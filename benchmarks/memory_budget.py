"""Training under memory budgets: `python benchmarks/memory_budget.py [NETWORK]`.

Budgets are parts of the peak without one.  For each: the arena, whether losses and variables after
two steps have the same bits, the time of a step as a multiple of that without a budget (the least
of a few, taken in turn with it), and how long planning took.  One JSON line per budget.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from typing import Any

from networks import NETWORKS, Network

import graphc as gx
from graphc.errors import MemoryBudgetError


class Trained:
    """A session that trains the network within a budget."""

    def __init__(self, network: Network, step: Any, feeds: Any, budget: int | None) -> None:
        self.fetches = [network.loss, step]
        self.feeds = feeds
        options = {"threads": ARGUMENTS.threads, "memory_budget": budget}
        self.session = gx.Session(**options)
        self.session.run(gx.global_variables_initializer())
        started = time.perf_counter()
        self.losses = [self.session.run(self.fetches, feeds)[0]]
        self.first = time.perf_counter() - started

    def seconds(self) -> float:
        """The time of one more step: processor time of all threads, which load disturbs least."""
        started = time.process_time()
        self.losses.append(self.session.run(self.fetches, self.feeds)[0])
        return time.process_time() - started

    def digest(self) -> str:
        """Of the losses and of every variable."""
        found = hashlib.sha256(repr([float(x) for x in self.losses]).encode())
        for variable in gx.get_collection(gx.GraphKeys.GLOBAL_VARIABLES):
            found.update(self.session.get_value(variable).tobytes())
        return found.hexdigest()[:16]


def measured(network: Network, step: Any, feeds: Any, budget: int | None) -> dict[str, Any]:
    """One step to compile and one to compare bits, then a few to time."""
    trained = Trained(network, step, feeds, budget)
    seconds = [trained.seconds()]
    digest = trained.digest()
    seconds += [trained.seconds() for _ in range(ARGUMENTS.steps - 1)]
    trained.session.close()
    return {"digest": digest, "seconds": min(seconds), "first_step": round(trained.first, 2)}


def main() -> None:
    batch = ARGUMENTS.batch
    with gx.Graph(seed=0).as_default():
        network = NETWORKS[ARGUMENTS.network]()
        step = network.step()
        feeds = network.feeds(batch)
        sizes = {"batch": batch}
        peak = gx.explain([network.loss, step]).peak_bytes(sizes)
        for part in ARGUMENTS.parts:
            budget = int(peak * part / 100)
            row: dict[str, Any] = {"network": ARGUMENTS.network, "batch": batch, "budget_%": part}
            try:
                explained = gx.explain([network.loss, step], memory_budget=budget, sizes=sizes)
            except MemoryBudgetError as error:
                print(json.dumps({**row, "refused": str(error).splitlines()[0]}), flush=True)
                continue
            base = measured(network, step, feeds, None)
            found = measured(network, step, feeds, budget)
            row["arena_MB"] = round(explained.peak_bytes(sizes) / 1e6, 1)
            row["arena_%"] = round(100 * explained.peak_bytes(sizes) / peak, 1)
            row["steps"] = len(explained.plan.steps)
            row["same_bits"] = found["digest"] == base["digest"]
            row["slowdown"] = round(found["seconds"] / base["seconds"], 3)
            row["first_step_s"] = [base["first_step"], found["first_step"]]
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("network", nargs="?", default="resnet50", choices=NETWORKS)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--parts", type=float, nargs="+", default=[100, 75, 50, 35])
    ARGUMENTS = parser.parse_args()
    main()

"""The peak that is printed before a run, and what the run uses: `python benchmarks/memory_plan.py`.

For each network and batch size: the arena as the formula and as `peak_bytes` say it, the bytes of
the arena that the run allocated, and the least that any arena could be (what is alive at once).
Prints a table and, last, one JSON line.
"""

from __future__ import annotations

import argparse
import gc
import json
from typing import Any

from networks import NETWORKS, Network

import graphc as gx
from graphc import kept_values
from graphc.arena import ALIGNMENT
from graphc.backends.llvm import tables
from graphc.dims import atoms, evaluate
from graphc.plan import Kept, Plan

DEFAULT = (
    *("mlp", "autoencoder", "residual_mlp40", "lenet", "alexnet"),
    *("googlenet", "resnet20", "resnet50", "lstm", "transformer"),
)


def alive_at_once(plan: Plan, batch: int) -> int:
    """The most bytes of buffers alive at one step: no arena can be smaller."""
    sizes = {a: batch for b in plan.buffers for a in atoms(b.bytes)}
    spans: dict[int, tuple[int, int, int]] = {}
    for b in plan.buffers:
        first, last, _ = spans.get(b.slot, (b.first, b.last, 0))
        size = -(-evaluate(b.bytes, sizes) // ALIGNMENT) * ALIGNMENT
        spans[b.slot] = min(first, b.first), max(last, b.last), size
    change = [0] * (len(plan.steps) + 2)
    for first, last, size in spans.values():
        change[first] += size
        change[last + 1] -= size
    alive = most = 0
    for c in change:
        alive += c
        most = max(most, alive)
    return most


class Allocations:
    """The arenas, and the arrays of values kept between runs, allocated while it is entered."""

    def __init__(self) -> None:
        self.bytes: list[int] = []
        self.kept: list[int] = []
        self._allocate = tables.arena_bytes
        self._keep = kept_values._aligned

    def __enter__(self) -> Allocations:
        def counted(size: int) -> Any:
            memory = self._allocate(size)
            self.bytes.append(memory.nbytes)
            return memory

        def counted_kept(value: Kept) -> Any:
            array = self._keep(value)
            self.kept.append(array.nbytes)
            return array

        tables.arena_bytes = counted
        kept_values._aligned = counted_kept
        return self

    def __exit__(self, *exc: object) -> None:
        tables.arena_bytes = self._allocate
        kept_values._aligned = self._keep


def used_bytes(network: Network, step: Any, batch: int) -> int:
    """What one training step allocates for its arena and keeps, in a session of its own."""
    with gx.Session() as session:
        session.run(gx.global_variables_initializer())
        gc.collect()
        with Allocations() as allocations:
            session.run([network.loss, step], network.feeds(batch))
    (used,) = allocations.bytes
    return used + sum(allocations.kept)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("networks", nargs="*", default=DEFAULT)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16])
    options = parser.parse_args()
    rows = []
    for name in options.networks:
        with gx.Graph(seed=0).as_default():
            network = NETWORKS[name]()
            step = network.step()
            explained = gx.explain([network.loss, step])
            print(f"{name}: peak = {explained.plan.peak_summary()}")
            formula = explained.peak_formula()
            for batch in options.batches:
                names = {"max": max, "min": min, "floordiv": int.__floordiv__, "batch": batch}
                row = {
                    "network": name,
                    "batch": batch,
                    "formula": eval(formula, names),
                    "printed": explained.peak_bytes({"batch": batch}),
                    "used": used_bytes(network, step, batch),
                    "alive": alive_at_once(explained.plan, batch),
                }
                rows.append(row)
                shown = "  ".join(f"{k} {row[k]:>13,}" for k in ("formula", "printed", "used"))
                ratio = row["used"] / row["alive"]
                print(f"  batch {batch:4d}  {shown}  arena/alive {ratio:.3f}", flush=True)
    exact = sum(r["printed"] == r["used"] for r in rows)
    print(
        json.dumps(
            {
                "cases": len(rows),
                "printed_equals_used": exact,
                "formula_equals_used": sum(r["formula"] == r["used"] for r in rows),
                "largest_arena_over_alive": round(max(r["used"] / r["alive"] for r in rows), 3),
            }
        )
    )


if __name__ == "__main__":
    main()

"""What the NaN guard costs: a step of training with and without it, in one run.

    python benchmarks/nan_guard.py [NETWORK ...]

Steps of both kinds take turns; the time is that of the process's threads, the median of READINGS.
"""

from __future__ import annotations

import statistics
import sys
import time

from networks import NETWORKS

import graphc as gx

READINGS = 41
BATCH = {"mlp": 64, "lenet": 64, "autoencoder": 64, "residual_mlp10": 64, "resnet20": 8}


def cost(name: str, batch: int) -> tuple[float, float]:
    """Milliseconds of a step without and with the guard."""
    gx.reset_default_graph()
    network = NETWORKS[name]()
    fetches = [network.loss, network.step()]
    feeds = network.feeds(batch)
    options = [gx.RunOptions(threads=1), gx.RunOptions(threads=1, nan_guard=True)]
    times: list[list[float]] = [[], []]
    with gx.Session() as session:
        session.run(gx.global_variables_initializer())
        for i in range(READINGS + 3):
            for kind, option in enumerate(options):
                started = time.process_time()
                session.run(fetches, feeds, option)
                if i >= 3:
                    times[kind].append(time.process_time() - started)
    without, guarded = (1e3 * statistics.median(t) for t in times)
    return without, guarded


def main() -> None:
    print(f"{'network':16} {'batch':>5} {'plain':>9} {'guarded':>9} {'cost':>7}")
    for name in sys.argv[1:] or BATCH:
        batch = BATCH.get(name, 32)
        plain, guarded = cost(name, batch)
        share = 100 * (guarded / plain - 1)
        print(f"{name:16} {batch:5} {plain:6.2f} ms {guarded:6.2f} ms {share:+6.1f}%")


if __name__ == "__main__":
    main()

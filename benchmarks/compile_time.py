"""The first training step of a network, stage by stage: `python benchmarks/compile_time.py NAME`.

Run it in a fresh process; prints one JSON line with seconds.  `total` is everything from `import
graphc` on but the initializers of the variables, `first_step` is compile and run of the first step.
`cpu` is processor time up to there, the start of Python included.  Nothing comes from the cache on
disk unless GRAPHC_CACHE names one.
"""

from __future__ import annotations

import argparse
import json
import os
import time

os.environ.setdefault("GRAPHC_CACHE", "off")
STARTED = time.perf_counter()

import graphc as gx  # noqa: E402

IMPORTED = time.perf_counter()

from networks import NETWORKS  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--explain", action="store_true", help="print where compiling took its time"
    )
    options = parser.parse_args()
    with gx.Graph(seed=0).as_default():
        started = time.perf_counter()
        network = NETWORKS[options.network]()
        built = time.perf_counter()
        step = network.step()
        differentiated = time.perf_counter()
        busy = time.process_time()
        with gx.Session(threads=options.threads) as session:
            session.run(gx.global_variables_initializer())
            initialized = time.perf_counter()
            feeds = network.feeds(options.batch)
            before, busy_before = time.perf_counter(), time.process_time()
            loss, _ = session.run([network.loss, step], feeds)
            first = time.perf_counter() - before
            busy += time.process_time() - busy_before
            before = time.perf_counter()
            session.run([network.loss, step], feeds)
            second = time.perf_counter() - before
        seconds = {
            "import": IMPORTED - STARTED,
            "build": built - started,
            "differentiate": differentiated - built,
            "initialize": initialized - differentiated,
            "first_step": first,
            "second_step": second,
        }
        counts = gx.stats()
        total = seconds["import"] + seconds["build"] + seconds["differentiate"] + first
        print(
            json.dumps(
                {
                    "network": options.network,
                    "batch": options.batch,
                    "loss": round(float(loss), 4),
                    **{k: round(v, 4) for k, v in seconds.items()},
                    "total": round(total, 4),
                    "cpu": round(busy, 4),
                    "plans": counts.plans,
                    "plans_loaded": counts.plans_loaded,
                    "modules": counts.modules,
                }
            )
        )
        if options.explain:
            print(gx.stats())
            seconds_of = gx.explain([network.loss, step]).seconds
            print({k: round(v, 3) for k, v in seconds_of.items()})


if __name__ == "__main__":
    main()

"""Many threads on one session: runs per second against one thread, every answer checked.

    python benchmarks/concurrency.py                    32 threads, 10,000 small runs each
    python benchmarks/concurrency.py --threads 8 --runs 2000

Rows are programs.  A ratio is the runs per second of all threads together by those of one thread in
the same run of this script, each the best of `--repeats` takes.  `us` is the processor time of a
run in microseconds, of one thread and of all together, which other programs on the machine disturb
less.  `MB` is the growth of the process's resident memory.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

import graphc as gx


@dataclass
class Case:
    """A program: `run` runs it once for this thread number and raises if the answer is wrong."""

    name: str
    run: Callable[[int], None]
    runs: int  # per thread
    finish: Callable[[int], None] = lambda runs: None  # checks the state after so many runs


def cases(runs: int) -> list[Case]:
    """Small and large programs, reading and writing."""
    rng = np.random.default_rng(0)
    session = gx.Session()
    made = []

    x = gx.placeholder("f32", (None,), name="x")
    small = gx.function([x], x * 2 + 1)
    fed = [np.full(10, i, "f4") for i in range(256)]

    def function(i: int) -> None:
        assert small(fed[i])[3] == 2 * i + 1

    made.append(Case("function, 10 floats", function, runs))
    y = x * 2 + 1

    def run(i: int) -> None:
        assert session.run(y, {x: fed[i]})[3] == 2 * i + 1

    made.append(Case("session.run, 10 floats", run, runs))
    v = gx.Variable(np.zeros(16, "f4"))
    up = v.assign_add(gx.ones(16))
    session.run(v.initializer)
    seen = [0.0] * 256

    def update(i: int) -> None:
        now = session.run(up)
        assert (now == now[0]).all()
        assert now[0] > seen[i]
        seen[i] = now[0]

    def whole(total: int) -> None:
        assert session.get_value(v)[0] == total
        session.run(v.initializer)
        seen[:] = [0.0] * 256

    made.append(Case("an update of 16 floats", update, runs, whole))

    image = gx.placeholder("f32", (None, 784))
    w1 = gx.Variable(rng.normal(0, 0.05, (784, 256)).astype("f4"))
    w2 = gx.Variable(rng.normal(0, 0.05, (256, 10)).astype("f4"))
    logits = gx.nn.softmax(gx.maximum(image @ w1, 0) @ w2)
    session.run([w1.initializer, w2.initializer])
    images = [rng.random((8, 784), "f4") for _ in range(4)]
    right = [session.run(logits, {image: a}) for a in images]

    def infer(i: int) -> None:
        assert session.run(logits, {image: images[i % 4]}).tobytes() == right[i % 4].tobytes()

    made.append(Case("784-256-10, batch 8", infer, max(runs // 20, 1)))

    big = gx.placeholder("f32", (None,))
    chain = gx.sum(gx.tanh(big) * big + gx.exp(-big * big))
    arrays = [rng.random(1_000_000, "f4") for _ in range(2)]
    sums = [session.run(chain, {big: a}) for a in arrays]

    def large(i: int) -> None:
        assert session.run(chain, {big: arrays[i % 2]}) == sums[i % 2]

    made.append(Case("1,000,000 elements", large, max(runs // 500, 1)))
    return made


def take(case: Case, threads: int, runs: int) -> tuple[float, float]:
    """Runs per second, and processor seconds per run; raises what a thread raised."""
    failures: list[BaseException] = []
    start = threading.Barrier(threads + 1)

    def work(i: int) -> None:
        try:
            start.wait()
            for _ in range(runs):
                case.run(i)
        except BaseException as error:
            failures.append(error)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(threads)]
    for worker in workers:
        worker.start()
    start.wait()
    began, used = time.perf_counter(), time.process_time()
    for worker in workers:
        worker.join()
    took, used = time.perf_counter() - began, time.process_time() - used
    if failures:
        raise failures[0]
    case.finish(threads * runs)
    return threads * runs / took, used / (threads * runs)


def resident() -> float:
    """Resident memory of this process in MB, 0 where the system does not tell."""
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            line = next(row for row in file if row.startswith("VmRSS"))
    except OSError:
        return 0.0
    return int(line.split()[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=32)
    parser.add_argument("--runs", type=int, default=10_000, help="small runs per thread")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    threads = arguments.threads
    print(
        f"{'program':24} {'runs/s, 1 thread':>17} {f'{threads} threads':>12} {'ratio':>6}"
        f" {'us':>9} {'us':>9} {'MB':>4}"
    )
    for case in cases(arguments.runs):
        take(case, 1, min(case.runs, 100))
        before = resident()
        takes = [
            (take(case, 1, case.runs), take(case, threads, case.runs))
            for _ in range(arguments.repeats)
        ]
        grown = resident() - before
        one, many = (max(t[i][0] for t in takes) for i in range(2))
        each, shared = (1e6 * min(t[i][1] for t in takes) for i in range(2))
        print(
            f"{case.name:24} {one:17,.0f} {many:12,.0f} {many / one:6.2f}"
            f" {each:9.2f} {shared:9.2f} {grown:4.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()

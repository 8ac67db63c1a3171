"""The run time of the LLVM backend: tables, team, contexts, commit, with hand-written kernels."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest
from hand_written_plans import M, N, executable, launch, make_plan, sizes, softmax_plan, value

from graphc.backends.llvm import memory
from graphc.backends.llvm import team as team_module
from graphc.backends.llvm.executable import BOUND_SIZES, compile_plan
from graphc.errors import IndexOutOfRangeError
from graphc.location import UNKNOWN
from graphc.plan import Check, Plan, Ref, Slot
from graphc.types import float32, int64

THREADS = [1, 2, 5]
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def chain(length: int) -> Plan:
    """out = x after `length` applications of 2x + 1, through two slots, plus a constant."""
    slots = [Ref("slot", 0), Ref("slot", 1)]
    steps = [launch("affine", Ref("input", 0), slots[0])]
    for i in range(1, length):
        steps.append(launch("affine", slots[(i - 1) % 2], slots[i % 2], wait_from=i - 1))
    last = slots[(length - 1) % 2]
    steps.append(launch("add", last, Ref("input", 0), Ref("output", 0), wait_from=length - 1))
    return make_plan(
        steps=tuple(steps),
        commit=len(steps),
        slots=(Slot((4 * N,)), Slot((4 * N, 8), above=(0,))),
        inputs=(value(float32, N),),
        outputs=(value(float32, N),),
    )


def chain_reference(x: np.ndarray, length: int) -> np.ndarray:
    y = x
    for _ in range(length):
        y = y * np.float32(2) + np.float32(1)
    result: np.ndarray = y + x
    return result


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("n", [0, 1, 63, 4097, 300_000])
def test_chain_of_maps(n: int, threads: int) -> None:
    run = executable(chain(5)).run
    x = np.arange(n, dtype=np.float32)
    for _ in range(3):
        (y,) = run([x], [], sizes(n=n), threads)
        np.testing.assert_array_equal(y, chain_reference(x, 5))


def test_one_executable_many_sizes() -> None:
    program = executable(chain(3))
    for n in range(2 * BOUND_SIZES):
        x = np.full(n, 3, np.float32)
        (y,) = program.run([x], [], sizes(n=n), 2)
        np.testing.assert_array_equal(y, chain_reference(x, 3))
        assert program.arena_bytes(sizes(n=n)) == program.plan.arena_bytes(sizes(n=n))
    assert len(program._bound) <= BOUND_SIZES


def test_arena_is_exactly_what_the_plan_says() -> None:
    program = executable(chain(3))
    for n in (0, 1, 1000):
        layout = program._tables.bind(sizes(n=n))
        assert layout.arena_bytes == program.plan.arena_bytes(sizes(n=n))


@pytest.mark.parametrize("threads", THREADS)
def test_reduction_over_rows(threads: int) -> None:
    step = launch("row_sum", Ref("input", 0), Ref("output", 0))
    program = executable(
        make_plan(
            steps=(step,), commit=1, inputs=(value(float32, M, N),), outputs=(value(float32, M),)
        )
    )
    for m, n in [(0, 5), (5, 0), (7, 11), (700, 300)]:
        x = np.random.default_rng(0).integers(-9, 9, (m, n)).astype(np.float32)
        (y,) = program.run([x], [], sizes(m=m, n=n), threads)
        np.testing.assert_array_equal(y, x.sum(axis=1))


def test_constants_are_read_from_their_own_copy() -> None:
    constant = np.arange(8, dtype=np.float32)
    step = launch("add", Ref("input", 0), Ref("constant", 0), Ref("output", 0))
    program = executable(
        make_plan(
            steps=(step,),
            commit=1,
            inputs=(value(float32, N),),
            outputs=(value(float32, N),),
            constants=(constant,),
        )
    )
    constant[:] = 100
    (y,) = program.run([np.ones(8, np.float32)], [], sizes(n=8), 1)
    np.testing.assert_array_equal(y, np.arange(8) + 1)


def negative_index(message: str) -> Check:
    return Check(IndexOutOfRangeError, message, UNKNOWN, "take")


def counting_plan() -> Plan:
    """Copy x to the output, refusing negative values; then state += x."""
    steps = (
        launch("checked", Ref("input", 0), Ref("output", 0), Ref("fault", 0)),
        launch("accumulate", Ref("input", 0), Ref("state", 0)),
    )
    return make_plan(
        steps=steps,
        commit=1,
        inputs=(value(int64, N),),
        outputs=(value(int64, N),),
        variables=(value(int64, N),),
        checks=((negative_index("{value} at {position}"),),),
    )


@pytest.mark.parametrize("threads", THREADS)
def test_a_fault_leaves_state_untouched(threads: int) -> None:
    program = executable(counting_plan())
    n = 500_000
    state = np.zeros(n, np.int64)
    good = np.arange(n)
    bad = good.copy()
    bad[n - 3] = -7
    for expected in range(1, 6):
        with pytest.raises(IndexOutOfRangeError, match=rf"^take: -7 at {n - 3}\n"):
            program.run([bad], [state], sizes(n=n), threads)
        program.run([good], [state], sizes(n=n), threads)
        np.testing.assert_array_equal(state, expected * good)


def test_the_earliest_faulty_step_is_reported() -> None:
    def error(name: str) -> Check:
        return Check(IndexOutOfRangeError, "{value}", UNKNOWN, name)

    steps = (
        launch("checked", Ref("input", 0), Ref("output", 0), Ref("fault", 1)),
        launch("checked", Ref("input", 1), Ref("output", 1), Ref("fault", 0)),
    )
    program = executable(
        make_plan(
            steps=steps,
            commit=2,
            inputs=(value(int64, N),) * 2,
            outputs=(value(int64, N),) * 2,
            checks=((error("second"),), (error("first"),)),
        )
    )
    fine, bad = np.array([1]), np.array([-2])
    for inputs, message in [((bad, bad), "first"), ((fine, bad), "second")]:
        with pytest.raises(IndexOutOfRangeError, match=rf"^{message}: -2\n"):
            program.run(inputs, [], sizes(n=1), 1)
    program.run((fine, fine), [], sizes(n=1), 1)


def test_many_python_threads_at_once() -> None:
    program = executable(chain(6))
    wrong: list[str] = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(60):
            n = int(rng.choice([1, 100, 5_000, 60_000]))
            x = rng.integers(0, 9, n).astype(np.float32)
            (y,) = program.run([x], [], sizes(n=n), int(rng.integers(1, 5)))
            if not np.array_equal(y, chain_reference(x, 6)):
                wrong.append(f"seed {seed} n {n}")

    threads = [threading.Thread(target=work, args=(i,)) for i in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_faults_and_successes_from_many_threads() -> None:
    program = executable(counting_plan())
    n = 100_000
    wrong: list[str] = []

    def work(seed: int) -> None:
        state = np.zeros(n, np.int64)
        x = np.full(n, seed + 1)
        bad = x.copy()
        bad[seed] = -1
        for i in range(40):
            if i % 3 == 2:
                try:
                    program.run([bad], [state], sizes(n=n), 3)
                    wrong.append("no error")
                except IndexOutOfRangeError:
                    continue
            program.run([x], [state], sizes(n=n), 3)
        if not np.array_equal(state, x * 27):
            wrong.append(f"state of {seed}")

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_contexts_die_while_the_team_is_at_work() -> None:
    for i in range(60):
        program = executable(chain(4))
        x = np.full(80_000 + i, 1, np.float32)
        (y,) = program.run([x], [], sizes(n=len(x)), 4)
        assert y[0] == y[-1] == 32
        del program


@pytest.mark.skipif(not memory._gil, reason="without the GIL no array is issued twice")
def test_large_outputs_are_issued_again_only_when_dropped() -> None:
    run = executable(chain(1)).run
    x = np.zeros(100_000, np.float32)
    bound = sizes(n=len(x))
    (first,) = run([x], [], bound, 1)
    view = first[5:10]
    address = first.ctypes.data
    del first
    kept = [run([x + i], [], bound, 1)[0] for i in range(6)]
    assert view.tolist() == [1.0] * 5
    assert [k[0] for k in kept] == [1.0 + 3 * i for i in range(6)]
    assert len({k.ctypes.data for k in kept} | {address}) == 7
    address = kept.pop().ctypes.data
    assert run([x], [], bound, 1)[0].ctypes.data == address


def test_tables_keep_no_pointers_of_a_finished_run() -> None:
    program = executable(chain(2))
    x = np.ones(10, np.float32)
    program.run([x], [], sizes(n=10), 1)
    ((bound),) = program._bound.values()
    (context,) = bound.idle
    args = context.words[bound.layout.places.args : bound.layout.places.sizes]
    border = [
        i
        for i, ref in enumerate(r for s in program.plan.steps for r in s.args)
        if ref.kind in ("input", "output")
    ]
    assert len(border) == 3
    assert not args[border].any()
    assert args[[i for i in range(len(args)) if i not in border]].all()


FORKING = """
import os, sys, threading, warnings
warnings.simplefilter("ignore", DeprecationWarning)
sys.path[:0] = {path!r}
import numpy as np
import hand_written_plans as h
import test_runtime as t
from graphc.backends.llvm.jit import JIT

program = h.executable(t.chain(4))
x = np.arange(200_000, dtype=np.float32)
bound = h.sizes(n=len(x))
TASKS = "/proc/self/task"

def check(times):
    for _ in range(times):
        (y,) = program.run([x], [], bound, 3)
        assert np.array_equal(y, t.chain_reference(x, 4))

def fork():
    child = os.fork()
    if child == 0:
        try:
            check(5)
            assert t.team_module.team().workers == 2
            assert not os.path.exists(TASKS) or len(os.listdir(TASKS)) == 3
            other = JIT()
            other.compile_text(h.TEXT, h.KERNELS)
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
    return os.waitpid(child, 0)[1]

if {warm}:
    check(3)
stop = threading.Event()
def busy():
    while not stop.is_set():
        check(1)
        JIT().compile_text(h.TEXT, h.KERNELS)
others = [threading.Thread(target=busy) for _ in range(3)] if {busy} else []
for thread in others:
    thread.start()
codes = [fork() for _ in range(4)]
stop.set()
for thread in others:
    thread.join()
check(3)
assert codes == [0] * 4, codes
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize(("warm", "busy"), [(False, False), (True, False), (True, True)])
def test_fork(warm: bool, busy: bool) -> None:
    path = [os.path.join(ROOT, "tests"), ROOT]
    script = FORKING.format(path=path, warm=warm, busy=busy)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr


def test_idle_workers_use_no_processor() -> None:
    x = np.arange(300_000, dtype=np.float32)
    executable(chain(3)).run([x], [], sizes(n=len(x)), 3)
    assert team_module.team().native.threads
    assert team_module.team().workers >= 2
    time.sleep(0.01)
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.03


def test_compiled_plan_gives_the_same_bits_on_any_number_of_threads() -> None:
    program = compile_plan(softmax_plan())
    for m, n in [(1, 1), (3, 70), (600, 257), (0, 4), (4, 0)]:
        x = np.random.default_rng(0).normal(size=(m, n)).astype(np.float32)
        found = [program.run([x], [], sizes(m=m, n=n), threads)[0] for threads in THREADS]
        assert all(y.tobytes() == found[0].tobytes() for y in found)
        if n:
            e = np.exp(x - x.max(axis=1, keepdims=True, initial=-np.inf))
            np.testing.assert_allclose(found[0], e / e.sum(axis=1, keepdims=True), rtol=2e-6)


def test_importing_loads_no_llvm_and_the_first_run_finds_threads() -> None:
    script = textwrap.dedent(
        """
        import sys
        from graphc.backends.llvm import executable, team
        assert "llvmlite" not in sys.modules
        assert team.team().native.threads == hasattr(__import__("os"), "fork")
        """
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=30, cwd=ROOT)

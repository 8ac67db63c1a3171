"""How many threads runs use: limits, defaults, containers, threadpoolctl."""

from __future__ import annotations

import ctypes
import errno
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hand_written_plans import N, make_plan, sizes, value

import graphc as gx
from graphc import threads
from graphc.backends.llvm import team as team_module
from graphc.backends.llvm.executable import LLVMExecutable
from graphc.backends.llvm.jit import default_jit
from graphc.backends.llvm.team import Team, native_driver
from graphc.dims import ceildiv
from graphc.errors import GraphTypeError
from graphc.kernel import MAP_BLOCK
from graphc.plan import Ref, Step
from graphc.types import int64

needs_pthreads = pytest.mark.skipif(
    sys.platform == "win32" or not hasattr(ctypes.CDLL(None), "pthread_self"),
    reason="no pthreads here",
)

WHO = f"""
declare i64 @pthread_self()
declare i32 @usleep(i32)

define void @who(ptr %args, ptr %sizes, i64 %b0, i64 %b1) {{
entry:
  %out = load ptr, ptr %args
  %me = call i64 @pthread_self()
  %in_at = getelementptr ptr, ptr %args, i64 1
  %in = load ptr, ptr %in_at
  %owner = load i64, ptr %in
  %nap_at = getelementptr i64, ptr %in, i64 1
  %nap = load i64, ptr %nap_at
  %helps = icmp ne i64 %me, %owner
  %some = icmp ne i64 %nap, 0
  %sleeps = and i1 %helps, %some
  br i1 %sleeps, label %sleep, label %go
sleep:
  %nap32 = trunc i64 %nap to i32
  %r = call i32 @usleep(i32 %nap32)
  br label %go
go:
  br label %test
test:
  %b = phi i64 [ %b0, %go ], [ %b2, %next ]
  %more = icmp slt i64 %b, %b1
  br i1 %more, label %spin, label %out_
spin:
  %i = phi i64 [ 0, %test ], [ %i1, %spin ]
  %at = mul i64 %b, {MAP_BLOCK}
  %to = getelementptr i64, ptr %out, i64 %at
  store volatile i64 %me, ptr %to
  %i1 = add i64 %i, 1
  %on = icmp slt i64 %i1, 20000
  br i1 %on, label %spin, label %next
next:
  %b2 = add i64 %b, 1
  br label %test
out_:
  ret void
}}
"""
"""Writes which thread runs it at the start of each block, taking its time.

The first input is the thread that calls, and for how many microseconds others sleep first.
"""


def who_runs() -> Callable[..., set[int]]:
    """A function (threads allowed, nap=0) -> the threads that ran the blocks of one run."""
    address = default_jit().compile_text(WHO, ["who"])["who"]
    args = (Ref("output", 0), Ref("input", 0))
    plan = make_plan(
        steps=(Step(0, args, (0,), (N,), ceildiv(N, MAP_BLOCK), -1),),
        commit=1,
        inputs=(value(int64, 2),),
        outputs=(value(int64, N),),
    )
    program = LLVMExecutable(plan, [address])
    bound = sizes(n=100 * MAP_BLOCK)

    def run(allowed: int, nap: int = 0) -> set[int]:
        (out,) = program.run([np.array([threading.get_ident(), nap])], [], bound, allowed)
        return set(out[::MAP_BLOCK].tolist())

    return run


@needs_pthreads
def test_a_run_uses_no_more_threads_than_allowed() -> None:
    me = threading.get_ident()
    threads_used = who_runs()
    assert threads_used(1) == {me}
    with gx.thread_limits(1):
        assert threads_used(4) == {me}
        with gx.thread_limits(3):  # an inner block allows no more than an outer one
            assert threads_used(4) == {me}
    for _ in range(5000):  # a worker may find everything done already
        if len(threads_used(2)) == 2:
            return
    raise AssertionError("the team never helped")


@needs_pthreads
def test_a_plan_held_up_by_its_team_does_without_it_for_a_while() -> None:
    threads_used = who_runs()
    for _ in range(50):
        threads_used(2)  # it learns how long a run takes
    helped = [len(threads_used(2, nap=20_000)) > 1 for _ in range(150)]
    assert sum(helped[50:]) < 50
    for _ in range(5000):
        if len(threads_used(2)) == 2:
            return
    raise AssertionError("the team never came back")


def test_limits_are_checked_and_taken_back() -> None:
    for wrong in (0, -1, 2.0, None):
        with pytest.raises(GraphTypeError, match="positive int"), gx.thread_limits(wrong):  # type: ignore[arg-type]
            pass
    with pytest.raises(ZeroDivisionError), gx.thread_limits(1):
        assert threads.limit() == 1
        raise ZeroDivisionError
    assert threads.limit() == threads.UNLIMITED


def test_results_do_not_depend_on_limits() -> None:
    with gx.Graph().as_default(), gx.Session(threads=3) as session:
        x = gx.placeholder("f32", (None,))
        y = gx.sum(gx.tanh(x))
        feed = {x: np.random.default_rng(0).normal(size=300_000)}
        expected = session.run(y, feed)
        for n in (1, 2):
            with gx.thread_limits(n):
                assert session.run(y, feed).tobytes() == expected.tobytes()


def test_the_default_is_what_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRAPHC_THREADS", raising=False)
    for text, expected in [("3", 3), ("5,2", 5), ("", 0), ("many", 0), ("0", 0)]:
        monkeypatch.setenv("OMP_NUM_THREADS", text)
        assert gx.Session(graph=gx.Graph()).threads == (expected or threads.processors())
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("GRAPHC_THREADS", "7")
    assert gx.Session(graph=gx.Graph()).threads == 7


def test_a_container_has_the_processors_of_its_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "cpu.max").write_text("150000 100000\n")
    (tmp_path / "a" / "b" / "cpu.max").write_text("max 100000\n")
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    monkeypatch.setattr(threads, "CGROUPS", str(tmp_path))
    assert list(threads._shares("", "/a/b")) == [1.5]
    assert list(threads._shares("", "/")) == []
    assert list(threads._shares("cpu", "/")) == []
    assert list(threads._shares("memory", "/a")) == []
    assert 1 <= threads.processors() <= threads.UNLIMITED


THREADPOOLCTL = """
import sys
{order}
session = gx.Session()
session.run(gx.constant(1.0) + 1)
find = lambda: [i for i in threadpoolctl.threadpool_info() if i["user_api"] == "graphc"]
assert [i["internal_api"] for i in find()] == ["graphc"], threadpoolctl.threadpool_info()
everything = find()[0]["num_threads"]
assert everything == threads.processors()
with threadpoolctl.threadpool_limits(1):
    assert find()[0]["num_threads"] == threads.limit() == 1
with threadpoolctl.threadpool_limits({{"graphc": 1}}):
    assert threads.limit() == 1
with threadpoolctl.threadpool_limits(1, user_api="blas"):
    assert threads.limit() == threads.UNLIMITED
assert threads.limit() == threads.UNLIMITED
with gx.thread_limits(1):
    assert find()[0]["num_threads"] == 1
"""


@pytest.mark.parametrize("first", ["threadpoolctl", "graphc"])
def test_threadpoolctl_limits_runs_too(first: str) -> None:
    pytest.importorskip("threadpoolctl")
    imports = ["import threadpoolctl", "import graphc as gx; from graphc import threads"]
    order = "\n".join(imports if first == "threadpoolctl" else imports[::-1])
    script = THREADPOOLCTL.format(order=order)
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


@needs_pthreads
def test_where_the_system_allows_no_more_threads_runs_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    team = Team(native_driver())
    start = team.native.start
    left = [1]

    def start_one(slot: int) -> int:
        left[0] -= 1
        return start(slot) if left[0] >= 0 else errno.EAGAIN

    monkeypatch.setattr(team.native, "start", start_one)
    monkeypatch.setattr(team_module, "_team", team)
    threads_used = who_runs()
    for _ in range(3):
        assert len(threads_used(5)) <= 2
    assert team.workers == 1
    assert left == [-1]  # asked for once more than there are, and not again

"""What a plan learns about the team: runs of made-up lengths go through the driver's own code."""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from contraction_reference import host_features
from llvmlite import binding

from graphc.backends.llvm.driver import CONTROL_BYTES, HEADER_WORDS, driver_text
from graphc.backends.llvm.driver_team import HOLD_SECONDS, LONGEST_HOLD

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the driver's calls are Linux's")

US = 1_000
MS = 1_000_000
WORKERS_AT_MOST, PROCESSORS = 408 // 8, 400 // 8


class Plan:
    """A plan table and the two functions that decide; a run takes what a test says."""

    def __init__(self, engine: binding.ExecutionEngine) -> None:
        self.table = np.zeros(HEADER_WORDS, np.int64)
        self.control = np.zeros(CONTROL_BYTES // 8, np.int64)
        self.control[PROCESSORS], self.control[WORKERS_AT_MOST] = 2, 1
        pointer, word = ctypes.c_void_p, ctypes.c_int64
        self._inviting = ctypes.CFUNCTYPE(word, pointer, pointer, word, word)(
            engine.get_function_address("inviting")
        )
        self._learn = ctypes.CFUNCTYPE(None, pointer, word, ctypes.c_bool)(
            engine.get_function_address("learn")
        )
        self.engine = engine

    def run(self, with_team: int, without: int) -> bool:
        """One run, that takes so many nanoseconds with the team and without; whether it had it."""
        table, control = self.table.ctypes.data, self.control.ctypes.data
        team = self._inviting(control, table, 0, 1) > 0
        self._learn(table, with_team if team else without, team)
        return team


@pytest.fixture(scope="module")
def engine() -> Iterator[binding.ExecutionEngine]:
    text = driver_text(platform.machine().lower(), True, True, True, False)
    for name in ("i64 @inviting", "void @learn"):
        assert f"define internal {name}" in text
        text = text.replace(f"define internal {name}", f"define {name}")
    machine = binding.Target.from_default_triple().create_target_machine(
        features=host_features(), jit=True
    )
    compiled = binding.create_mcjit_compiler(binding.parse_assembly(text), machine)
    compiled.finalize_object()
    yield compiled


def _longest_rest(plan: Plan, runs: int, times: Callable[[bool], tuple[int, int]]) -> int:
    """Most runs in a row without the team; `times` is told whether the last run had it."""
    longest = rest = 0
    team = True
    for _ in range(runs):
        team = plan.run(*times(team))
        rest = 0 if team else rest + 1
        longest = max(longest, rest)
    return longest


def test_a_team_that_helps_is_always_called(engine: binding.ExecutionEngine) -> None:
    assert _longest_rest(Plan(engine), 1000, lambda _: (50 * US, 90 * US)) == 0


def test_workers_that_must_be_woken_come_back(engine: binding.ExecutionEngine) -> None:
    """They sleep while runs do without them, so the first run with them again is slow."""
    plan = Plan(engine)
    _longest_rest(plan, 20, lambda _: (50 * US, 90 * US))
    assert _longest_rest(plan, 2000, lambda _: (5 * MS, 90 * US)) == LONGEST_HOLD

    def times(awake: bool) -> tuple[int, int]:
        return (50 * US if awake else 150 * US), 90 * US

    _longest_rest(plan, 3 * LONGEST_HOLD, times)
    assert _longest_rest(plan, 1000, times) == 0


def test_a_worker_without_a_processor_is_seldom_called(engine: binding.ExecutionEngine) -> None:
    plan = Plan(engine)
    _longest_rest(plan, 20, lambda _: (20 * US, 30 * US))
    called = sum(plan.run(3 * MS, 30 * US) for _ in range(2000))
    assert called < 2000 / LONGEST_HOLD * 2 + 30  # twice in a row, and some until that is learned


def test_long_runs_do_without_for_a_short_time(engine: binding.ExecutionEngine) -> None:
    plan = Plan(engine)
    _longest_rest(plan, 20, lambda _: (5 * MS, 9 * MS))
    rest = _longest_rest(plan, 1000, lambda _: (30 * MS, 9 * MS))
    assert 3 <= rest <= HOLD_SECONDS / 5e-3


def test_a_team_that_is_level_keeps_most_runs(engine: binding.ExecutionEngine) -> None:
    """Where two processors are one for a while, doing without one of them gains nothing."""
    plan = Plan(engine)
    _longest_rest(plan, 20, lambda _: (5 * MS, 9 * MS))
    assert sum(plan.run(9 * MS, 9 * MS) for _ in range(1000)) > 500

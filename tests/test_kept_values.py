"""What follows from variables alone stays between runs, and is never older than they are."""

from __future__ import annotations

import gc
import os
import threading
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import graphc as gx
from graphc import kept_values
from graphc.backends.llvm import jit as jit_module
from graphc.backends.llvm.executable import LLVMExecutable
from graphc.backends.llvm.keeping import Keeping
from graphc.passes import keep
from graphc.plan import Plan
from graphc.plan_file import PlanFileError, check_plan

N = 192
"""Large enough for a product of two N x N arrays, element by element, to be worth keeping."""

rng = np.random.default_rng(0)
FED = rng.standard_normal((3, N), dtype=np.float32)
WEIGHTS = rng.standard_normal((N, N), dtype=np.float32) / 16
MASK = (rng.random((N, N)) < 0.5).astype(np.float32)


class Model:
    """x @ (w * mask), its training step, and two more programs that need w * mask."""

    def __init__(self, **session: Any) -> None:
        self.x = gx.placeholder("f32", ("batch", N), name="x")
        self.w = gx.Variable(WEIGHTS, name="w")
        self.mask = gx.Variable(MASK, name="mask", trainable=False)
        masked = self.w * self.mask
        self.y = gx.tanh(self.x @ masked)
        self.other = self.x @ masked + 1
        self.train = gx.train.SGD(0.1).minimize(gx.mean(gx.square(self.y)))
        self.session = gx.Session(**session)
        self.session.run(gx.global_variables_initializer())

    def predict(self, fed: Any = FED, **options: Any) -> Any:
        return self.session.run(self.y, {self.x: fed}, gx.RunOptions(**options))

    def expected(self) -> Any:
        """The same from the variables as they are, in a session that has kept nothing."""
        with gx.Session(self.session.graph) as fresh:
            for v in (self.w, self.mask):
                fresh.set_value(v, self.session.get_value(v))
            return fresh.run(self.y, {self.x: FED})

    def is_right(self) -> None:
        assert self.predict().tobytes() == self.expected().tobytes()


def steps_run(work: Callable[[], Any]) -> int:
    before = gx.stats().kept_steps
    work()
    return gx.stats().kept_steps - before


def plan_of(fetches: Any, **options: Any) -> Plan:
    return gx.explain(fetches, **options).plan


def test_what_follows_from_variables_is_made_once() -> None:
    model = Model()
    plan = plan_of(model.y)
    assert plan.keeping is not None
    assert [kept.bytes for kept in plan.kept] == [4 * N * N]
    assert {plan.variables[i].name for i in plan.kept[0].sources} == {"w", "mask"}
    made = len(plan.keeping.steps)
    assert steps_run(model.predict) == made
    for batch in (1, 3, 40):
        assert steps_run(lambda n=batch: model.predict(np.ones((n, N), np.float32))) == 0
    model.is_right()


def test_a_trace_shows_which_steps_ran() -> None:
    model = Model()
    shown = []
    for _ in range(3):
        trace = gx.Trace()
        model.predict(trace=trace)
        shown.append([e.label for e in trace.events if e.label.startswith("keep ")])
        rest = len(trace.events) - len(shown[-1])
        assert rest == len(plan_of(model.y).steps)
    assert shown[0] == ["keep multiply", "keep pack"]
    assert shown[1:] == [[], []]


def test_values_follow_every_change(tmp_path: Path) -> None:
    model = Model()
    session = model.session
    assign = gx.assign(model.mask, gx.ones((N, N)))
    initialize = gx.global_variables_initializer()
    saver = gx.train.Saver([model.w, model.mask])
    path = saver.save(session, tmp_path / "start")
    changes: list[Callable[[], Any]] = [
        lambda: session.set_value(model.w, WEIGHTS * 2),
        lambda: session.run(assign),
        lambda: session.run(model.train, {model.x: FED}),
        lambda: session.run(model.train, {model.x: FED}),
        lambda: saver.restore(session, path),
        lambda: session.run(initialize),
    ]
    model.is_right()
    for change in changes:
        for runs in (1, 2, 50):  # Python does the first ones, native code those that come later
            change()
            for _ in range(runs):
                model.predict()
                got = session.run(model.y, {model.x: FED})
            assert got.tobytes() == model.expected().tobytes()


def test_writes_of_native_code_are_seen() -> None:
    model = Model()
    small = gx.Variable(np.float32(1), name="small", trainable=False)
    model.session.run(small.initializer)
    scaled = gx.tanh(model.x @ (model.w * model.mask * small))
    halve = gx.assign(small, small / 2)
    run = model.session.run
    for _ in range(60):
        run(halve)
    run(gx.assign(small, gx.constant(np.float32(1024))))
    for k in range(60):
        first = run(scaled, {model.x: FED})
        for _ in range(30):
            again = run(scaled, {model.x: FED})
        assert again.tobytes() == first.tobytes()
        scale = np.float32(1024) / 2**k
        model.session.set_value(model.w, WEIGHTS * scale)
        run(small.assign(1.0))
        expected = run(scaled, {model.x: FED})
        model.session.set_value(model.w, WEIGHTS)
        run(small.assign(scale))
        assert expected.tobytes() == first.tobytes()  # powers of two: no rounding in between
        run(halve)


def test_bits_are_those_of_a_program_that_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model(threads=2)
    kept = [model.predict(threads=n) for n in (1, 2, 2)]
    monkeypatch.setattr(keep, "LEAST_WORK", np.inf)
    plain = model.expected()
    assert not plan_of(model.y).kept
    assert {a.tobytes() for a in kept} == {plain.tobytes()}


def test_the_reference_gives_the_same() -> None:
    model = Model()
    with gx.Session(device="reference") as reference:
        for scale in (1.0, 0.5):
            for v, value in ((model.w, WEIGHTS * scale), (model.mask, MASK)):
                reference.set_value(v, value.astype(np.float32))
                model.session.set_value(v, value.astype(np.float32))
            for _ in range(2):
                wanted = reference.run(model.y, {model.x: FED})
                np.testing.assert_allclose(model.predict(), wanted, rtol=1e-5, atol=1e-5)


# ---- what is kept, and what is not -------------------------------------------------------------


def test_only_what_is_worth_its_memory_is_kept() -> None:
    x = gx.placeholder("f32", (None, N))
    w = gx.Variable(WEIGHTS)
    v = gx.Variable(np.ones(4096, np.float32))
    u = gx.Variable(np.ones(8, np.float32))
    assert plan_of(x @ (w * w)).kept
    assert not plan_of(gx.sum(x) * gx.nn.softmax(u)).kept  # too little work
    outer = gx.cumsum(gx.reshape(v, (-1, 1)) * v, axis=1)
    assert not plan_of(gx.sum(x) + outer).kept  # 64 MiB made of 16 KiB
    assert not plan_of(w @ (w * w)).kept  # nothing is fed
    assert not plan_of([x @ (w * w), gx.assign(w, w + 1)]).kept  # the variable is written
    both = plan_of([x @ gx.nn.softmax(w), gx.assign(v, v + 1)])
    assert [both.variables[i] for i in both.kept[0].sources] == [both.variables[0]]
    masked = w * w
    assert not plan_of([x * 2, masked]).kept  # a fetch has an array of its own in each run


def test_normalization_joins_the_convolution_before_it() -> None:
    x = gx.placeholder("f32", ("batch", 12, 12, 64), name="x")
    h = gx.nn.layers.conv2d(x, 64, 3, use_bias=False)
    y = gx.nn.relu(gx.nn.layers.batch_normalization(h, training=False))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(keep, "LEAST_WORK", 0)
        plan = plan_of(y)
    assert len(plan.steps) == 1
    found = {}
    for kept in plan.kept:  # the convolution may have its filter in another form, too
        names = frozenset(plan.variables[i].name.split("/")[-1] for i in kept.sources)
        found[names] = kept.bytes
    assert found[frozenset(("gamma", "moving_variance"))] == 4 * 64


def test_what_is_packed_of_kept_values_is_kept_in_their_place() -> None:
    x = gx.placeholder("f32", ("batch", 512), name="x")
    w, mask = (gx.Variable(np.ones((512, 64), np.float32)) for _ in range(2))
    y = x @ (w * mask)
    plan = plan_of(y)
    assert plan.keeping is not None
    assert [step.label for step in plan.keeping.steps] == ["keep multiply", "keep pack"]
    assert plan.kept_bytes == 4 * 512 * 64
    assert len(plan.steps) == 1
    tight = plan_of(y, memory_budget=plan.kept_bytes + 2048, sizes={"batch": 1})
    assert not tight.kept
    assert "pack" not in [step.label for step in tight.steps]  # it would not pay for one run


def test_steps_that_may_fail_are_not_kept() -> None:
    x = gx.placeholder("f32", (None, N))
    w = gx.Variable(WEIGHTS)
    i = gx.Variable(np.arange(N), trainable=False)
    y = x @ gx.take(gx.nn.softmax(w), i, axis=0)
    assert len(plan_of(y).kept) == 1  # the softmax; an index may be out of range
    with gx.Session() as session:
        session.run(gx.global_variables_initializer())
        session.run(y, {x: FED})
        session.set_value(i, np.full(N, N))
        with pytest.raises(gx.errors.IndexOutOfRangeError):
            session.run(y, {x: FED})


def test_constants_alone_are_enough() -> None:
    x = gx.placeholder("f32", (None, 512))
    table = gx.cumsum(
        gx.constant(np.arange(512 * 512, dtype=np.float32).reshape(512, 512)) / 1e6, axis=0
    )
    y = x @ table
    assert plan_of(y).kept
    fed = np.ones((2, 512), np.float32)
    with gx.Session() as session:
        first = session.run(y, {x: fed})
        assert steps_run(lambda: session.run(y, {x: fed})) == 0
        assert session.run(y, {x: fed}).tobytes() == first.tobytes()


def test_programs_of_a_session_share_values() -> None:
    model = Model()
    run = model.session.run
    assert steps_run(model.predict) > 0
    assert steps_run(lambda: run(model.other, {model.x: FED})) == 0
    held = list(model.session.variables._kept._values.values())
    assert len(held) == 1
    model.session.set_value(model.mask, MASK * 2)
    assert steps_run(lambda: run(model.other, {model.x: FED})) > 0
    assert steps_run(model.predict) == 0
    model.is_right()


def test_sessions_keep_their_own() -> None:
    model = Model()
    with gx.Session() as other:
        other.set_value(model.w, WEIGHTS)
        other.set_value(model.mask, 1 - MASK)
        for _ in range(3):
            model.is_right()
            wanted = np.tanh(FED @ (WEIGHTS * (1 - MASK)))
            np.testing.assert_allclose(
                other.run(model.y, {model.x: FED}), wanted, rtol=1e-4, atol=1e-4
            )


def test_only_what_has_changed_is_made_again() -> None:
    x = gx.placeholder("f32", (None, N))
    frozen = gx.Variable(WEIGHTS, trainable=False)
    head = gx.Variable(WEIGHTS)
    y = gx.nn.relu(x @ gx.nn.softmax(frozen)) @ (head * head)
    step = gx.train.SGD(0.1).minimize(gx.mean(y))
    trained = plan_of([y, step])
    assert [trained.variables[i].name for i in trained.kept[0].sources] == [frozen.node.name]
    with gx.Session() as session:
        session.run(gx.global_variables_initializer())
        session.run(y, {x: FED})
        assert steps_run(lambda: session.run(step, {x: FED})) == 0  # shared
        assert steps_run(lambda: session.run(step, {x: FED})) == 0
        trace = gx.Trace()
        session.run(y, {x: FED}, gx.RunOptions(trace=trace))
        assert [e.label for e in trace.events if e.label.startswith("keep")] == [
            "keep square",
            "keep pack",
        ]


def test_any_number_of_programs_may_write(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_values, "MOST_WRITERS", 3)
    model = Model()
    others = [gx.Variable(np.float32(0), name=f"v{i}", trainable=False) for i in range(4)]
    scale = gx.constant(np.float32(-1))
    for i in range(4):  # the last ones have no word of their own
        model.session.run([v.initializer for v in others[: i + 1]])
        model.is_right()
        flip = [gx.assign(model.w, model.w * scale), *(gx.assign(v, v) for v in others[: i + 1])]
        for _ in range(40):
            before = model.predict()
            model.session.run(flip)
            assert model.predict().tobytes() == (-before).tobytes()
    model.is_right()
    assert len(model.session.variables._kept._writers) == 3


def test_functions_keep_too() -> None:
    model = Model()
    function = gx.function([model.x], model.y, session=model.session)
    for _ in range(40):
        assert function(FED).tobytes() == model.expected().tobytes()
    model.session.set_value(model.w, -WEIGHTS)
    for _ in range(40):
        assert function(FED).tobytes() == model.expected().tobytes()


def test_parts_between_python_functions_keep_nothing() -> None:
    model = Model()
    called = gx.py_op(lambda a: a + 1, [model.y], "f32", model.y.type.shape)
    y = called @ (model.w * model.mask)
    for scale in (1, 2):
        model.session.set_value(model.w, WEIGHTS * scale)
        wanted = (model.expected() + 1) @ (WEIGHTS * scale * MASK)
        np.testing.assert_allclose(
            model.session.run(y, {model.x: FED}), wanted, rtol=1e-4, atol=1e-4
        )


# ---- threads, interrupts, forks ----------------------------------------------------------------


def in_threads(*work: Callable[[], Any]) -> None:
    errors: list[BaseException] = []

    def guarded(one: Callable[[], Any]) -> None:
        try:
            one()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(one,)) for one in work]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    if errors:
        raise errors[0]


def test_threads_see_whole_values_of_one_moment() -> None:
    model = Model(threads=2)
    done = threading.Event()
    ones = np.ones((1, N), np.float32)
    row = model.x @ (model.w * model.mask)
    up = gx.assign(model.w, model.w + 1)
    model.session.set_value(model.w, np.zeros((N, N), np.float32))
    model.session.set_value(model.mask, np.ones((N, N), np.float32))

    def write() -> None:
        for k in range(60):
            if k % 3:
                model.session.run(up)
            else:
                w = model.session.get_value(model.w) + 1
                model.session.set_value(model.w, w)
        done.set()

    def read() -> None:
        last = 0.0
        while not done.is_set():
            got = model.session.run(row, {model.x: ones})
            assert (got == got[0, 0]).all()
            assert got[0, 0] >= last
            last = got[0, 0]

    in_threads(write, read, read)
    assert (model.session.run(row, {model.x: ones}) == 60 * N).all()


def test_threads_that_find_values_stale_make_them_once() -> None:
    model = Model()
    keeping = plan_of(model.y).keeping
    assert keeping is not None
    wanted = model.expected()
    results: list[Any] = []

    def predict() -> None:
        results.append(model.predict())

    for scale in (1, -1, 1, -1):
        model.session.set_value(model.w, WEIGHTS * scale)
        assert steps_run(lambda: in_threads(*[predict] * 4)) == len(keeping.steps)
        assert {a.tobytes() for a in results} == {(wanted * scale).tobytes()}
        results.clear()


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_values_whose_making_was_interrupted_are_made_again(
    before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model()
    model.predict()
    model.session.set_value(model.w, -WEIGHTS)
    original = Keeping.make

    def interrupted(self: Keeping, wanted: Any, outputs: Any, *rest: Any) -> None:
        if not before:
            original(self, wanted, outputs, *rest)
        outputs[0][...] = 7
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Keeping, "make", interrupted)
        with pytest.raises(KeyboardInterrupt):
            model.predict()
    model.is_right()


def test_a_run_within_the_making_of_values_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model()
    wanted = model.expected()
    original = Keeping.make
    results: list[Any] = []

    def nested(self: Keeping, wanted: Any, outputs: Any, *rest: Any) -> None:
        monkeypatch.setattr(Keeping, "make", original)  # as a signal handler would come in between
        results.append(model.predict())
        original(self, wanted, outputs, *rest)

    monkeypatch.setattr(Keeping, "make", nested)
    results.append(model.predict())
    results.append(model.predict())
    assert {a.tobytes() for a in results} == {wanted.tobytes()}


def test_time_that_is_over_leaves_values_to_be_made() -> None:
    n = 1500
    x = gx.placeholder("f32", (None, n))
    w = gx.Variable(np.eye(n, dtype=np.float32))
    y = x @ (w @ w)  # the product takes far longer than it is allowed
    with gx.Session(threads=1) as session:
        session.run(gx.global_variables_initializer())
        fed = np.ones((1, n), np.float32)
        assert plan_of(y).kept
        with pytest.raises(gx.errors.RunTimeoutError):
            session.run(y, {x: fed}, gx.RunOptions(timeout=1e-4))
        assert session.run(y, {x: fed}).tobytes() == fed.tobytes()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_makes_its_own() -> None:
    model = Model(threads=1)
    model.predict()
    child = os.fork()
    if not child:
        code = 1
        try:
            model.is_right()
            model.session.set_value(model.w, -WEIGHTS)
            model.is_right()
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    model.is_right()


# ---- memory ------------------------------------------------------------------------------------


def test_memory_is_what_the_plan_says() -> None:
    model = Model()
    explained = gx.explain(model.y)
    plan = explained.plan
    model.predict()
    (held,) = model.session.variables._kept._held.values()
    assert sum(a.nbytes for a in held.arrays) == plan.kept_bytes == 4 * N * N
    (executable,) = model.session.variables._kept._held.keys()
    assert isinstance(executable, LLVMExecutable)
    sizes = dict.fromkeys(executable._atoms, 3)
    (bound,) = executable._bound.values()
    assert [c._arena.nbytes for c in bound.idle] == [plan.arena_bytes(sizes)]
    memory = explained.memory({"batch": 3})
    assert (memory.arena, memory.kept) == (plan.arena_bytes(sizes), plan.kept_bytes)
    assert explained.peak_bytes({"batch": 3}) == memory.arena + memory.kept
    assert f"peak: {plan.peak_formula()} bytes" in str(explained)
    assert f"{plan.kept_bytes} bytes" in str(explained)


def test_making_values_takes_no_more_than_the_arena() -> None:
    x = gx.placeholder("f32", ("batch", N), name="x")
    w = gx.Variable(WEIGHTS)
    inner = gx.nn.softmax(w) @ gx.cumsum(w, axis=1)
    y = x @ (inner @ gx.cumsum(w, axis=0))
    plan = plan_of(y)
    assert plan.keeping is not None
    need = plan.keeping.arena_bytes({})
    assert need > 4 * N * N
    assert plan.peak_bytes(dict.fromkeys(plan_atoms(plan), 1)) == need + plan.kept_bytes
    for batch in (1, 10, 5000):
        values = dict.fromkeys(plan_atoms(plan), batch)
        scope = {"batch": batch, "max": max}
        assert eval(plan.peak_formula(), scope) == plan.peak_bytes(values)


def plan_atoms(plan: Plan) -> list[Any]:
    return [a for v in plan.inputs for d in v.type.shape or () for a in gx.dims.atoms(d)]


def test_a_budget_without_room_keeps_nothing() -> None:
    model = Model()
    y = model.y @ (model.w + model.mask)  # one of the two at a time, if they are not kept
    sizes = {"batch": 3}
    plan = plan_of(y)
    assert len(plan.kept) == 2
    peak = gx.explain(y).peak_bytes(sizes)
    roomy = plan_of(y, memory_budget=peak, sizes=sizes)
    tight = gx.explain(y, memory_budget=peak - 1, sizes=sizes)
    assert roomy.kept == plan.kept
    assert not tight.plan.kept
    assert tight.peak_bytes(sizes) < 0.6 * peak
    wanted = model.session.run(y, {model.x: FED})
    for budget in (peak, peak - 1):
        with gx.Session(memory_budget=budget) as session:
            for v in (model.w, model.mask):
                session.set_value(v, model.session.get_value(v))
            work = lambda s=session: s.run(y, {model.x: FED})  # noqa: E731
            assert (steps_run(work) > 0) == (budget == peak)
            assert work().tobytes() == wanted.tobytes()
            assert session.run(y, {model.x: FED[:1]}).shape == (1, N)


def test_what_is_kept_goes_with_its_session_or_its_program() -> None:
    model = Model()
    model.predict()
    (held,) = model.session.variables._kept._held.values()
    array = weakref.ref(held.arrays[0].base)
    del held
    model.session.close()
    gc.collect()
    assert array() is None


def test_memory_is_used_again() -> None:
    model = Model()
    model.predict()
    (held,) = model.session.variables._kept._held.values()
    addresses = [a.ctypes.data for a in held.arrays]
    for scale in (2, 3):
        model.session.set_value(model.w, WEIGHTS * scale)
        model.is_right()
        (held,) = model.session.variables._kept._held.values()
        assert [a.ctypes.data for a in held.arrays] == addresses


# ---- on disk -----------------------------------------------------------------------------------


def test_plans_out_of_the_cache_keep_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRAPHC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(jit_module, "_default", None)
    results = []
    for loaded in (0, 2):  # the plans of the initialization and of the run
        jit_module._default = None
        before = gx.stats().plans_loaded
        with gx.Graph().as_default():
            model = Model()
            results.append(model.predict())
            assert steps_run(model.predict) == 0
            model.session.set_value(model.w, -WEIGHTS)
            results.append(model.predict())
        assert gx.stats().plans_loaded - before == loaded
    assert results[0].tobytes() == results[2].tobytes() == (-results[1]).tobytes()
    assert results[1].tobytes() == results[3].tobytes()


def test_plans_that_keep_what_they_may_not_are_refused() -> None:
    plan = plan_of(Model().y).without_kernels()
    made = plan.keeping
    assert made is not None
    check_plan(plan, len(plan.spaces), 2)
    wrong = [
        replace(plan, keeping=None),
        replace(plan, kept=()),
        replace(plan, keeping=plan),
        replace(plan, keeping=replace(made, outputs=())),
        replace(plan, keeping=replace(made, inputs=plan.inputs)),
        replace(plan, keeping=replace(made, spaces=())),
        replace(plan, keeping=replace(made, commit=0)),
        replace(plan, kept=(replace(plan.kept[0], sources=(9,)),)),
        replace(plan, kept=(replace(plan.kept[0], value=plan.outputs[0]),)),
    ]
    for broken in wrong:
        with pytest.raises(PlanFileError):
            check_plan(broken, len(plan.spaces), 2)


def test_a_check_looks_at_what_is_kept() -> None:
    x = gx.placeholder("f32", ("batch", 6), name="x")
    w = gx.Variable(np.ones((6, 6), np.float32))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(keep, "LEAST_WORK", 0)
        y = x @ (w * w)
        assert plan_of(y).kept
        with gx.Session() as session:
            session.run(gx.global_variables_initializer())
            report = gx.check(y, {x: np.ones((2, 6))}, session)
    assert report.ok, str(report)


@pytest.mark.parametrize("n", [96, 128, 160, 192, 224, 256])
def test_constants_stay_until_what_follows_from_them_is_made(n: int) -> None:
    x = gx.placeholder("f32", (None, n))
    fed = rng.standard_normal((40, n), dtype=np.float32)
    table = rng.standard_normal((n, n), dtype=np.float32)
    with gx.Session() as session:
        got = session.run([x @ table, gx.matmul(x, table, transpose_b=True)], {x: fed})
    # were the constants' memory given back too early, its first bytes would be the allocator's
    np.testing.assert_allclose(got[0], fed @ table, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(got[1], fed @ table.T, rtol=1e-3, atol=1e-3)

"""Plans and machine code out of the cache: nothing is done twice, and nothing is different."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import graphc as gx
from graphc import plan_cache
from graphc.backends.llvm import jit as jit_module
from graphc.backends.llvm import object_cache, target
from graphc.backends.llvm.image import Image, MappedImage, NotLinkable, joined, link
from graphc.late_program import LateProgram
from graphc.location import Location
from graphc.ops.define import elementwise
from graphc.passes import pipeline
from graphc.passes.resolve_state import resolve_state
from graphc.plan_file import PlanFileError, check_plan, decode, encode
from graphc.program_key import NotKeyable, ProgramKey, key_of_graph, key_of_program
from graphc.types import FLOATS

COUNTS = ("plans", "plans_loaded", "kernels", "kernels_loaded", "modules")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own."""
    monkeypatch.setenv("GRAPHC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def own_compiler() -> Iterator[None]:
    """Leave the compiler of the other tests as it was."""
    before = jit_module._default
    yield
    jit_module._default = before


def counted(work: Callable[[], Any]) -> tuple[Any, dict[str, int]]:
    """What `work` returns in a graph of its own with nothing compiled yet, and what that took."""
    jit_module._default = None
    before = asdict(gx.stats())
    with gx.Graph(seed=1).as_default():
        result = work()
    after = asdict(gx.stats())
    return result, {name: after[name] - before[name] for name in COUNTS}


def network(width: int = 6, scale: float = 0.5) -> list[Any]:
    """Three training steps with dropout, a gather and an unknown batch."""
    x = gx.placeholder("f32", ("batch", 4), name="x")
    i = gx.placeholder("i64", ("batch",), name="i")
    w = gx.Variable(np.linspace(-1, 1, 4 * width, dtype=np.float32).reshape(4, width), name="w")
    table = gx.Variable(np.arange(12, dtype=np.float32).reshape(3, 4), name="table")
    h = gx.nn.dropout(gx.tanh((x + gx.take(table, i, axis=0)) @ w), 0.3)
    loss = gx.mean(gx.nn.softmax(h * scale) ** 2)
    step = gx.train.SGD(0.1).minimize(loss)
    results: list[Any] = []
    with gx.Session(threads=1) as session:
        session.run(gx.global_variables_initializer())
        for batch in (3, 5, 1):
            feeds = {x: np.ones((batch, 4), np.float32), i: np.arange(batch) % 3}
            results += session.run([loss, h, step], feeds)[:2]
        results += session.run([w, table])
        with pytest.raises(gx.errors.IndexOutOfRangeError) as caught:
            session.run([loss, step], {x: np.ones((2, 4)), i: [0, 7]})
        results.append(str(caught.value))
    return results


def same(a: list[Any], b: list[Any]) -> bool:
    return len(a) == len(b) and all(
        x == y if isinstance(x, str) else np.asarray(x).tobytes() == np.asarray(y).tobytes()
        for x, y in zip(a, b, strict=True)
    )


def test_a_second_time_nothing_is_planned_or_compiled(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, cost = counted(network)
    assert cost["plans"] == 4
    assert cost["plans_loaded"] == 0
    assert cost["kernels"] > 5
    again, cost = counted(network)
    assert same(first, again)
    kernels = cost.pop("kernels_loaded")
    assert kernels > 5
    assert cost == {"plans": 0, "plans_loaded": 4, "kernels": 0, "modules": 0}
    monkeypatch.setenv("GRAPHC_CACHE", "off")
    without, cost = counted(network)
    assert same(first, without)
    assert cost["plans_loaded"] == cost["kernels_loaded"] == 0


SCRIPT = """
import json, sys
import numpy as np
import graphc as gx
x = gx.placeholder("f32", (None, 3), name="x")
w = gx.Variable(np.ones((3, 2), np.float32))
with gx.Session() as session:
    session.run(gx.global_variables_initializer())
    y = session.run(gx.nn.softmax(x @ w * {scale}), {{x: np.arange(6).reshape(2, 3)}})
loaded = any(name.startswith(("llvmlite.binding", "graphc.passes.fuse")) for name in sys.modules)
stats = gx.stats()
print(json.dumps([y.tobytes().hex(), stats.plans, stats.plans_loaded, stats.modules, loaded]))
"""


def run_script(scale: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SCRIPT.format(scale=scale)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_a_second_process_compiles_nothing_and_loads_no_compiler(folder: Path) -> None:
    at_once = [run_script(0.5) for _ in range(3)]
    found = [json.loads(process.communicate()[0]) for process in at_once]
    again = json.loads(run_script(0.5).communicate()[0])
    assert {f[0] for f in found} == {again[0]}
    assert again[1:4] == [0, 2, 0]
    if sys.platform == "linux" and platform.machine() == "x86_64":
        assert again[4] is False


# ---- what makes a difference -------------------------------------------------------------------


def small(value: float = 2.0, dtype: str = "f32", name: str = "x") -> Any:
    x = gx.placeholder(dtype, (None,), name=name)
    with gx.Session(threads=1) as session:
        return session.run(gx.exp(x) * value + 1, {x: np.arange(5)})


def test_constants_types_and_names_make_another_plan(folder: Path) -> None:
    counted(small)
    for work, kernels in [
        (lambda: small(3.0), 1),
        (lambda: small(dtype="f64"), 1),
        (lambda: small(name="y"), 0),  # another plan of the same code
    ]:
        _, cost = counted(work)
        assert (cost["plans"], cost["plans_loaded"], cost["kernels"]) == (1, 0, kernels)
    np.testing.assert_allclose(counted(lambda: small(3.0))[0], np.exp(np.arange(5)) * 3 + 1, 1e-6)
    assert counted(small)[1]["plans_loaded"] == 1


def test_sizes_that_are_one_make_another_plan(folder: Path) -> None:
    def work(m: int) -> Any:
        x, y = gx.placeholder("f32", (None,)), gx.placeholder("f32", (None,))
        with gx.Session() as session:
            return session.run(x + y, {x: np.arange(4), y: np.ones(m)})

    outcomes = [(4, 0), (1, 0), (4, 1), (1, 1)]
    for m, loaded in outcomes:
        result, cost = counted(lambda m=m: work(m))  # type: ignore[misc]
        np.testing.assert_array_equal(result, np.arange(4) + 1)
        assert cost["plans_loaded"] == loaded


def test_a_line_that_moves_is_the_same_plan_and_errors_name_the_new_one(folder: Path) -> None:
    source = """
import graphc as gx
import numpy as np

i = gx.placeholder("i64", (None,), name="i")
y = gx.take(gx.constant([1.0, 2.0]), i)
with gx.Session() as session:
    session.run(y, {i: [5]})
"""

    def fault(text: str, name: str) -> str:
        with pytest.raises(gx.errors.IndexOutOfRangeError) as caught:
            exec(compile(text, name, "exec"), {})
        return str(caught.value)

    first, _ = counted(lambda: fault(source, "one.py"))
    assert "at one.py:6" in first
    moved, cost = counted(lambda: fault("# a comment\n" + source, "two.py"))
    assert "at two.py:7" in moved
    assert (cost["plans"], cost["plans_loaded"]) == (0, 1)


def test_the_number_of_threads_makes_no_difference(folder: Path) -> None:
    def work(threads: int) -> Any:
        x = gx.placeholder("f32", (None, 300))
        with gx.Session(threads=threads) as session:
            return session.run(gx.sum(gx.tanh(x), 0), {x: np.ones((400, 300))})

    first, _ = counted(lambda: work(1))
    second, cost = counted(lambda: work(3))
    assert cost["plans_loaded"] == 1
    assert first.tobytes() == second.tobytes()


def test_the_nan_guard_makes_another_plan_that_blames_as_before(folder: Path) -> None:
    def work(guard: bool) -> str:
        x = gx.placeholder("f32", (None,), name="x")
        y = gx.log(x) * 2
        with gx.Session(nan_guard=guard) as session:
            try:
                return str(session.run(y, {x: [1.0, 0.0]}))
            except gx.errors.NonFiniteError as error:
                return str(error)

    assert counted(lambda: work(False))[0] == "[  0. -inf]"
    first, cost = counted(lambda: work(True))
    assert cost["plans_loaded"] == 0
    again, cost = counted(lambda: work(True))
    assert cost["plans_loaded"] == 1
    assert first == again
    assert "log" in first


def test_runs_out_of_the_cache_can_be_traced(folder: Path) -> None:
    values = {"x": np.ones((3, 4), np.float32)}
    traces = []
    for _ in range(2):
        with gx.Graph().as_default(), gx.Session() as session:
            x = gx.placeholder("f32", (None, 4), name="x")
            y = gx.sum(gx.tanh(x) * 2.0, axis=1)
            (expected, traced), counts = counted(
                lambda s=session, y=y: (s.run(y, values), gx.Trace())
            )
            options = gx.RunOptions(trace=traced)
            assert same([session.run(y, values, options)], [expected])
            traces.append([(e.label, e.flops, e.bytes) for e in traced.events])
    assert counts["plans_loaded"] == 1
    assert traces[0] == traces[1]
    assert traces[0]


def test_another_processor_finds_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted(small)
    monkeypatch.setattr(target, "processor", lambda: b"another")
    _, cost = counted(small)
    assert (cost["plans_loaded"], cost["kernels_loaded"]) == (0, 0)
    monkeypatch.setattr(target, "processor", lambda: None)  # LLVM is asked then
    _, cost = counted(small)
    assert (cost["plans_loaded"], cost["kernels_loaded"]) == (0, 0)
    assert counted(small)[1]["plans_loaded"] == 1


def test_another_graphc_finds_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted(small)
    monkeypatch.setattr(target, "fingerprint", lambda: b"another")
    assert counted(small)[1]["plans_loaded"] == 0
    before = set(folder.iterdir())
    monkeypatch.setattr(target, "fingerprint", lambda: None)
    assert counted(small)[1]["plans_loaded"] == 0
    assert set(folder.iterdir()) == before


@pytest.mark.parametrize("flag", ["GRAPHC_VERIFY", "GRAPHC_DUMP"])
def test_runs_that_show_the_passes_go_through_them(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: str
) -> None:
    counted(small)
    monkeypatch.setenv(flag, "1" if flag == "GRAPHC_VERIFY" else str(tmp_path / "dump"))
    assert counted(small)[1]["plans"] == 1


def test_another_list_of_passes_goes_through_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted(small)
    monkeypatch.setattr(pipeline, "GRAPH_PASSES", pipeline.GRAPH_PASSES[:1])
    assert counted(small)[1]["plans"] == 1


def test_operators_and_functions_of_the_users_are_not_kept(folder: Path) -> None:
    mine = elementwise(
        "mine_in_the_cache",
        dtypes=FLOATS,
        reference=lambda x: x + 1,
        scalar=lambda s, x: x + 1,
        vjp=lambda y, g, x: [g],
        doc="x + 1.",
    )

    def own() -> Any:
        x = gx.placeholder("f32", (None,))
        with gx.Session() as session:
            return session.run(mine(x), {x: [1.0]})

    def python() -> Any:
        x = gx.placeholder("f32", (None,))
        y = gx.py_op(lambda a: a + 1, [x], "f32", x.dims)
        with gx.Session() as session:
            return session.run(y * 2, {x: [1.0]})

    for work, value in [(own, 2.0), (python, 4.0)]:
        for _ in range(2):
            result, cost = counted(work)
            assert result == [value]
            assert cost["plans"] == 1


# ---- damage ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plan", "kernels", "names"])
def test_whatever_is_missing_or_damaged_is_made_again(folder: Path, kind: str) -> None:
    first, _ = counted(small)
    for damage in (lambda p: p.unlink(), lambda p: p.write_bytes(p.read_bytes()[:-1] + b"?")):
        for path in folder.glob(f"{kind}-*"):
            damage(path)
        again, _ = counted(small)
        assert first.tobytes() == again.tobytes()
        _, cost = counted(small)
        assert (cost["plans_loaded"], cost["kernels"]) == (1, 0)


def test_a_folder_that_cannot_be_written_costs_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("GRAPHC_CACHE", str(tmp_path / "file"))
    for _ in range(2):
        result, cost = counted(small)
        np.testing.assert_allclose(result, np.exp(np.arange(5)) * 2 + 1, 1e-6)
        assert cost["plans"] == 1


def example_plan() -> tuple[Any, ProgramKey]:
    x = gx.placeholder("f32", ("batch", 4), name="x")
    w = gx.Variable(np.ones((4, 3), np.float32))
    i = gx.placeholder("i64", (None,), name="i")
    y = gx.take(gx.nn.softmax(x @ w) + gx.constant(np.float32([5, 7, 1])), i, axis=1)
    step = gx.assign(w, w * 2)
    plan = gx.explain([y, step]).plan
    program = resolve_state((y,), (step.node,), (x, i))
    return replace(plan, kernels=(), buffers=()), key_of_program(program)


def test_a_plan_survives_being_written() -> None:
    plan, key = example_plan()
    data = encode(plan, key.atoms, key.lines)
    atoms, lines = list(key.atoms), list(key.lines)
    assert repr(decode(data, atoms, lines)) == repr(plan)
    moved = [Location(f"moved {line.file}", line.line) for line in lines]
    assert repr(decode(data, atoms, moved)) != repr(plan)


def test_damaged_plans_are_refused_or_are_plans() -> None:
    plan, key = example_plan()
    data = encode(plan, key.atoms, key.lines)
    atoms, lines = list(key.atoms), list(key.lines)
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(600):
        damaged = bytearray(data)
        at = int(rng.integers(len(data)))
        damaged[at] ^= 1 << int(rng.integers(8))
        try:
            found = decode(bytes(damaged), atoms, lines)
            check_plan(found, len(plan.spaces), len(plan.variables))
        except PlanFileError:
            refused += 1
    assert refused > 100
    for length in (0, 7, 24, len(data) // 2, len(data) - 1):
        with pytest.raises(PlanFileError):
            check_plan(decode(data[:length], atoms, lines), len(plan.spaces), 1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"commit": 99},
        {"slots": ()},
        {"inputs": ()},
        {"checks": ()},
        {"constants": ()},
        {"variables": ()},
        {"spaces": ()},
        {"outputs": ("text",)},
    ],
    ids=str,
)
def test_a_plan_that_refers_to_nothing_is_refused(wrong: dict[str, Any]) -> None:
    plan, _ = example_plan()
    check_plan(plan, len(plan.spaces), 1)
    broken = replace(plan, **wrong)
    with pytest.raises(PlanFileError):
        check_plan(broken, len(plan.spaces), 1)
    for field, value in [("kernel", 99), ("wait_from", 99), ("writes", (99,)), ("blocks", "text")]:
        step = replace(plan.steps[0], **{field: value})
        with pytest.raises(PlanFileError):
            check_plan(replace(plan, steps=(step, *plan.steps[1:])), len(plan.spaces), 1)


# ---- keys --------------------------------------------------------------------------------------


def key_of(build: Callable[[], Any]) -> bytes:
    with gx.Graph().as_default() as graph:
        made = build()
        fed = tuple(n.outputs[0] for n in graph.nodes if n.op.name == "placeholder")
        early, late = LateProgram((made,), (), fed), resolve_state((made,), (), fed)
        return key_of_graph(early).digest + key_of_program(late).digest


def test_keys_follow_from_what_is_computed() -> None:
    def build(value: Any = 1.0, shape: Any = (None, 3), axis: int = 0, keep: bool = False) -> Any:
        x = gx.placeholder("f32", shape, name="x")
        return gx.sum(x * value, axis, keepdims=keep)

    variants: list[Callable[[], Any]] = [
        build,
        lambda: build(2.0),
        lambda: build(-0.0),
        lambda: build(0.0),
        lambda: build(np.float32(np.nan)),
        lambda: build(np.ones(3, np.float32)),
        lambda: build(np.array([1, 1, 2], np.float32)),
        lambda: build(shape=(2, 3)),
        lambda: build(shape=(None, None)),
        lambda: build(shape=("a", "a")),
        lambda: build(axis=1),
        lambda: build(keep=True),
    ]
    keys = [key_of(v) for v in variants]
    assert keys == [key_of(v) for v in variants]
    assert len(set(keys)) == len(keys)
    assert key_of(lambda: build(shape=("b", "c"))) == key_of(lambda: build(shape=(None, None)))


def test_a_gradient_of_the_users_is_part_of_the_graph_not_of_the_plan(folder: Path) -> None:
    def work(clip: float) -> Any:
        x = gx.placeholder("f32", (3,), name="x")
        y = gx.grad_clip(x, -clip, clip)
        with gx.Session() as session:
            return session.run([y * 2, gx.gradients(gx.sum(y * 5), x)[0]], {x: np.ones(3)})

    first, _ = counted(lambda: work(1.0))
    again, cost = counted(lambda: work(1.0))
    assert same(first, again)
    assert cost["plans_loaded"] == 1
    other, cost = counted(lambda: work(2.0))
    assert cost["plans_loaded"] == 0
    np.testing.assert_array_equal(other[1], [2, 2, 2])


def test_whether_a_program_writes_is_known_before_it_is_made() -> None:
    x = gx.placeholder("f32", (3,), name="x")
    v = gx.Variable(np.zeros(3, np.float32))
    noise = gx.random.uniform((3,))
    shifted = gx.assign(v, v + x) * 2 + noise
    for fetches, fed in [
        ((x * 2,), (x,)),
        ((v + x,), (x,)),
        ((noise,), ()),
        ((shifted,), (x,)),
        ((gx.exp(shifted),), (shifted,)),
    ]:
        program = resolve_state(fetches, (), fed)
        late = LateProgram(fetches, (), fed)
        assert late.writes == bool(program.updates)
        if fed and fed[0] is x:
            assert list(map(id, late.inputs)) == list(map(id, program.inputs))


def test_a_name_with_a_null_character_has_no_key() -> None:
    x = gx.placeholder("f32", (2,), name="x")
    key = key_of_graph(LateProgram((gx.exp(x),), (), (x,)))
    key._text.append("a\0b")
    with pytest.raises(NotKeyable):
        key.finish()


# ---- objects -----------------------------------------------------------------------------------


def test_what_is_no_object_is_refused() -> None:
    for data in (b"", b"\x7fELF", b"\x7fELF\x02\x01\x01" + bytes(57), bytes(200)):
        with pytest.raises(NotLinkable):
            link(data)


def test_images_survive_being_packed() -> None:
    image = Image(b"code" * 20, {"f": 0, "g": 16}, (("malloc", 24),), 0)
    data = object_cache.pack(image)
    assert object_cache.unpack(data) == image
    assert object_cache.unpack(object_cache.pack(b"object")) == b"object"
    for length in range(len(data)):
        assert object_cache.unpack(data[:length]) is None
    outside = replace(image, symbols={"f": 81})
    assert object_cache.unpack(object_cache.pack(outside)) is None
    beyond = replace(image, imports=(("malloc", 76),))
    assert object_cache.unpack(object_cache.pack(beyond)) is None


def test_an_image_that_needs_what_is_not_there_is_not_mapped() -> None:
    with pytest.raises(LookupError):
        MappedImage(Image(bytes(64), {}, (("no_such_function_anywhere", 0),)))
    with pytest.raises(LookupError):
        joined([Image(bytes(4096), {}, (), 4096), Image(bytes(64), {})])


def test_a_place_without_a_cache_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    x = gx.placeholder("f32", (2,), name="x")
    program = resolve_state((gx.exp(x),), (), (x,))
    assert plan_cache.keyed(program) is None


def test_operators_of_every_module_are_known_to_be_graphcs_own() -> None:
    code = (
        "import importlib, pkgutil, graphc, graphc.ops\n"
        "for found in pkgutil.walk_packages(graphc.__path__, 'graphc.'):\n"
        "    if '__main__' not in found.name: importlib.import_module(found.name)\n"
        "own = {op.name for op in graphc.ops.BUILT_IN} | {'custom_gradient'}\n"
        "print(sorted(set(importlib.import_module('graphc.node').OPS) - own))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # those of the others would keep programs that use them out of the cache
    assert done.stdout == "[]\n"

"""Graph text: exact output, and that what prints parses to what was printed."""

from __future__ import annotations

import itertools
import random
import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import graphc as gx
from graphc import dims
from graphc.errors import GraphError, ShapeError
from graphc.node import OPS, ConstantValue, Node, Op
from graphc.ops.define import Sample
from graphc.parse import parse_graph, parse_program
from graphc.parse_values import Cursor, Symbols, Values
from graphc.passes.resolve_state import resolve_state
from graphc.text import Printer, print_graph, store_graph, store_program
from graphc.types import bool_, float32, int8
from graphc.verify import verify


def build() -> gx.Graph:
    graph = gx.Graph(seed=3)
    with graph.as_default():
        x = gx.placeholder("f32", (None, 4), name="x")
        w = gx.Variable(np.zeros((4, 2), "f4"), name="w", lr_mult=0.5)
        b = gx.Variable(np.array([1, -2], "f4"), name="b", trainable=False)
        y = gx.sum(x @ w + b, axis=0, name="y")
        done = gx.group(w.assign_sub(w), name="train")
        graph.add_to_collection("losses", y)
        graph.add_to_collection("ops", done)
        graph.add_to_collection("ops", ("tag", 1, 2.5, None, True))
    return graph


EXPECTED = """\
graph {seed=3} {
  %x: f32[x?0,4] = placeholder()
  %w/initial_value: f32[4,2] = constant() {value=f32[4,2](0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)}
  %w: f32[4,2] = variable()
  %w/assign: f32[4,2] = assign(%w, %w/initial_value) {how="set"}
  %b/initial_value: f32[2] = constant() {value=f32[2](1.0, -2.0)}
  %b: f32[2] = variable()
  %b/assign: f32[2] = assign(%b, %b/initial_value) {how="set"}
  %matmul: f32[x?0,2] = matmul(%x, %w) {transpose_a=False, transpose_b=False}
  %add: f32[x?0,2] = add(%matmul, %b)
  %y: f32[2] = sum(%add) {axes=(0,), keepdims=False}
  %assign: f32[4,2] = assign(%w, %w) {how="sub"}
  %train: () = group() after %assign
  variable %w {lr_mult=0.5, trainable=True} = %w/initial_value by %w/assign
  variable %b {lr_mult=1.0, trainable=False} = %b/initial_value by %b/assign
  collection "variables" = %w, %b
  collection "trainable_variables" = %w
  collection "losses" = %y
  collection "ops" = ^train, ("tag", 1, 2.5, None, True)
}
"""


def without_locations(text: str) -> str:
    return re.sub(r"  # \S+:\d+$", "", text, flags=re.MULTILINE)


def test_text_is_exact() -> None:
    assert without_locations(str(build())) == EXPECTED


def test_every_line_names_its_source() -> None:
    line = next(n for n in str(build()).splitlines() if n.startswith("  %matmul"))
    assert re.search(r"  # test_text\.py:\d+$", line)


def test_parse_restores_variables_collections_and_control() -> None:
    graph = parse_graph(str(build()))
    verify(graph)
    w, b = graph.get_collection("variables")
    assert isinstance(w, gx.Variable) and isinstance(b, gx.Variable)
    assert (w.trainable, w.lr_mult, b.trainable, b.lr_mult) == (True, 0.5, False, 1.0)
    assert graph.get_collection("trainable_variables") == [w]
    assert w.initializer is graph.get_operation_by_name("w/assign")
    assert w.initial_value is graph.get_tensor_by_name("w/initial_value:0")
    (loss,) = graph.get_collection("losses")
    assert loss is graph.get_tensor_by_name("y:0")
    train, tag = graph.get_collection("ops")
    assert isinstance(train, Node) and tag == ("tag", 1, 2.5, None, True)
    assert train.control == (graph.get_operation_by_name("assign"),)
    assert graph.seed == 3
    assert str(graph) == str(build())  # locations included


@pytest.mark.parametrize("device", ["reference", "cpu"])
def test_parsed_graph_computes_the_same(device: str) -> None:
    original = build()
    parsed = parse_graph(*store_graph(original))
    values = []
    for graph in (original, parsed):
        with graph.as_default(), gx.Session(graph, device=device) as session:
            session.run(gx.global_variables_initializer())
            values.append(session.run("y", {"x": np.ones((3, 4), "f4")}))
    assert values[0].tobytes() == values[1].tobytes()


def test_new_nodes_get_new_names_after_parsing() -> None:
    graph = parse_graph(str(build()))
    with graph.as_default():
        x = graph.get_tensor_by_name("x")
        assert (x + x).node.name == "add_1"
        fresh = gx.placeholder("f32", (None, 4), name="x")
    assert fresh.node.name == "x_1"
    assert fresh.dims[0] is not x.dims[0]


def test_program_text_round_trips_and_runs() -> None:
    graph = build()
    y = graph.get_tensor_by_name("y")
    x = graph.get_tensor_by_name("x")
    program = resolve_state([y], [graph.get_operation_by_name("train")], [x])
    text, constants = store_program(program)
    assert "\n  input %x\n  return %y\n  update %w := %" in text
    parsed = parse_program(text, constants)
    verify(parsed)
    assert store_program(parsed)[0] == text
    assert str(program) == text


# ---- values ------------------------------------------------------------------------------------


def value_round_trip(value: object) -> object:
    printer = Printer(unique=True)
    text = printer.value(value)
    cursor = Cursor(text)
    found = Values(printer.constants, Symbols()).value(cursor)
    cursor.end()
    again = Printer(unique=True)
    assert again.value(found) == text
    return found


SIZES = st.recursive(
    st.one_of(st.integers(0, 50), st.sampled_from(["n", "m", "batch"]).map(dims.symbol)),
    lambda inner: st.tuples(
        st.sampled_from([dims.add, dims.mul, dims.maximum, dims.minimum]), inner, inner
    ).map(lambda t: t[0](t[1], t[2])),
    max_leaves=6,
)
ARRAYS = st.tuples(
    st.sampled_from(["f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?"]),
    st.sampled_from([(), (0,), (1,), (3,), (2, 4), (3, 5), (1, 0, 2)]),
    st.integers(0, 2**32 - 1),
)
VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**70), 2**70),
        st.floats(allow_nan=False),
        st.text(),
        st.sampled_from([float32, int8, bool_]),
        SIZES,
    ),
    lambda inner: st.lists(inner, max_size=4).map(tuple),
    max_leaves=8,
)


@pytest.mark.no_cover
@settings(max_examples=200, deadline=None)
@given(VALUES)
def test_attribute_values_round_trip(value: object) -> None:
    found = value_round_trip(value)
    assert found == value
    assert type(found) is type(value)


@settings(max_examples=200, deadline=None)
@given(ARRAYS)
def test_arrays_round_trip_bit_for_bit(drawn: tuple[str, tuple[int, ...], int]) -> None:
    code, shape, seed = drawn
    dtype = np.dtype(code)
    rng = np.random.default_rng(seed)
    data = rng.bytes(int(np.prod(shape)) * dtype.itemsize)  # any bits: NaNs, infinities, denormals
    if code == "?":
        data = bytes(b & 1 for b in data)
    array = np.frombuffer(data, dtype).reshape(shape)
    found = value_round_trip(ConstantValue(array))
    assert isinstance(found, ConstantValue)
    assert found.array.dtype == dtype and found.array.shape == shape
    assert found.array.tobytes() == array.tobytes()


def test_special_floats_in_attributes() -> None:
    for text in ("inf", "-inf", "nan", "-0.0", "1e+300", "5e-324"):
        found = value_round_trip(float(text))
        assert repr(found) == repr(float(text))


# ---- whole graphs ------------------------------------------------------------------------------


def random_graph(seed: int) -> gx.Graph:
    pick = random.Random(seed)
    graph = gx.Graph(seed=pick.choice([None, seed]))
    with graph.as_default():
        shapes = [(None, 3), ("n", 3), (2, 3), ("n", None), None]
        pool = [
            gx.placeholder(
                "f32", pick.choice(shapes), name=f"{pick.choice(['3 x', '_x', 'é/y'])}{i}"
            )
            for i in range(3)
        ]
        pool.append(gx.Variable(np.full((2, 3), seed, "f4"), name="v"))
        for _ in range(pick.randrange(3, 25)):
            a, b = pick.choice(pool), pick.choice(pool)
            kind = pick.randrange(7)
            try:
                if kind == 0:
                    made = a + b
                elif kind == 1:
                    made = gx.maximum(a, 0.1) * b
                elif kind == 2:
                    made = gx.sum(a, axis=pick.choice([None, 0, -1]), keepdims=True)
                elif kind == 3:
                    made = gx.reshape(a, (-1,))
                elif kind == 4:
                    made = gx.transpose(a)
                elif kind == 5:
                    with graph.name_scope("scope"), graph.control_dependencies([b]):
                        made = gx.identity(a)
                else:
                    (gradient,) = gx.gradients(gx.sum(a * a), [a])
                    made = a if gradient is None else gradient
            except ShapeError:
                continue
            pool.append(made)
        for t in pick.sample(pool, 2):
            graph.add_to_collection("picked", t)
    return graph


@pytest.mark.parametrize("seed", range(40))
def test_random_graphs_round_trip(seed: int) -> None:
    graph = random_graph(seed)
    text, constants = store_graph(graph)
    parsed = parse_graph(text, constants)
    verify(graph)
    verify(parsed)
    again, constants_again = store_graph(parsed)
    assert again == text
    assert constants.keys() == constants_again.keys()
    assert [n.op for n in parsed.nodes] == [n.op for n in graph.nodes]
    assert [n.name for n in parsed.nodes] == [n.name for n in graph.nodes]


def test_text_does_not_depend_on_what_the_process_did_before() -> None:
    code = (
        "import graphc as gx\n"
        "from graphc import dims\n"
        "{before}"
        "a = gx.placeholder('f32', ('n', 'm', None), name='a')\n"
        "b = gx.placeholder('f32', (None, 'm', 'n'), name='a')\n"
        "gx.reshape(a + gx.transpose(b, (2, 1, 0)), (-1,))\n"
        "print(gx.get_default_graph())\n"
    )
    before = "dims.symbol('m'); [dims.fresh('a') for _ in range(7)]; dims.symbol('n')\n"
    texts = [
        subprocess.run(
            [sys.executable, "-c", code.format(before=b)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for b in ("pass\n", before)
    ]
    assert texts[0] == texts[1] and "a?0" in texts[0]


def test_large_arrays_are_named_once() -> None:
    graph = gx.Graph()
    with graph.as_default():
        gx.constant(np.arange(9, dtype="f4"), name="a")
        gx.constant(np.arange(9, dtype="f4"), name="b")
        gx.constant(np.arange(10, dtype="f4"), name="c")
    text, constants = store_graph(graph)
    assert re.findall(r"@\w+", text) == ["@const0", "@const0", "@const1"]
    assert [a.size for a in constants.values()] == [9, 10]
    with pytest.raises(GraphError, match=r"^line 2: constant @const0 is not given$"):
        parse_graph(text)
    with pytest.raises(GraphError, match=r"^line 2: constant @const0 is float32 \(3,\), not float"):
        parse_graph(text, {**constants, "const0": np.zeros(3, "f4")})


# ---- hostile text ------------------------------------------------------------------------------

HEAD = "graph {\n  %x: f32[2,3] = placeholder()\n"
BAD = {
    "": "line 1: the text ends before its closing brace",
    "program {\n}": "line 1: expected 'graph', found 'program'",
    HEAD: "line 3: the text ends before its closing brace",
    HEAD + "}\nx": "line 4: text after the closing brace",
    HEAD + "  %y: f32[2,3] = evil(%x)\n}": "line 3: no operator is called 'evil'",
    HEAD + "  %y: f32[2,3] = negative(%z)\n}": "line 3: %z is used before its definition",
    HEAD + "  %y: f32[2,3] = negative(%x:1)\n}": "line 3: %x has 1 outputs",
    HEAD + "  %y: f32[9,3] = negative(%x)\n}": ("line 3: negative gives f32[2,3], not f32[9,3]"),
    HEAD + "  %y: f64[2,3] = negative(%x)\n}": ("line 3: negative gives f32[2,3], not f64[2,3]"),
    HEAD + "  %x: f32[2,3] = negative(%x)\n}": "line 3: %x is defined twice",
    HEAD + "  %y: f99[2] = negative(%x)\n}": "line 3: not a dtype: 'f99'",
    HEAD + "  %y: f32[2,3] = negative(%x) {a=__import__}\n}": "line 3: not a value: '__import__'",
    HEAD + "  %y: f32[2,3] = negative(%x) {a=1, a=2}\n}": "line 3: attribute 'a' is given twice",
    HEAD + "  %y: f32[2,3] = negative(%x) {a=!object}\n}": (
        "line 3: a value of type 'object' has no text form"
    ),
    HEAD + "  %y: f32[2,3] = negative(%x) €\n}": "line 3: cannot read '€'",
    HEAD + "  %y: f32[2,3] = sum(%x)\n}": ("line 3: ill-formed attributes (KeyError: 'axes')"),
    HEAD + "  %c: f32[2] = constant() {value=f32[2](1.0)}\n}": "line 3: 1 elements for shape (2,)",
    HEAD + "  %c: i8[1] = constant() {value=i8[1](300)}\n}": "line 3: 300 does not fit i8",
    HEAD + "  %c: f32[9] = constant() {value=f32[9]0x00}\n}": "line 3: 1 bytes for f32 (9,)",
    HEAD + "  variable %x {lr_mult=1.0, trainable=True} = %x by %x\n}": (
        "line 3: 'x' is not a variable"
    ),
    "graph {seed=None} {\n}": "line 1: not an option of a graph: seed=None",
}


@pytest.mark.parametrize("text", BAD)
def test_bad_text_is_refused_by_line(text: str) -> None:
    with pytest.raises(GraphError) as caught:
        parse_graph(text)
    assert str(caught.value) == BAD[text]


def attribute(text: str) -> str:
    return HEAD + "  %y: f32[2,3] = negative(%x) {a=" + text + "}\n}"


@pytest.mark.parametrize(
    "text",
    [
        attribute("(" * 5000),
        attribute("<" + "min(" * 300 + "1" + ",1)" * 300 + ">"),
        attribute("<" + "*".join(["max(a+b+c+d+e+f, a+b+c+d+e+f)"] * 60) + ">"),
        attribute("9" * 100_000),
        attribute("<" + "9" * 2000 + ">"),
        attribute("<" + "*".join(["99999999999999999999"] * 100) + ">"),
        attribute("<floordiv(n,0)*floordiv(1,0)>"),
        attribute("f32[99999999999,99999999999](1.0)"),
        attribute('"' + "\\ud800" * 3 + '\\x"'),
        HEAD + "  %y: f32[" + ",".join(["1"] * 1000) + "] = placeholder()\n}",
        "graph {\n" + "%" * 100_000,
    ],
    ids=itertools.count(),
)
def test_oversized_text_is_refused_quickly(text: str) -> None:
    with pytest.raises(GraphError, match=r"^line \d+: .{1,300}$"):
        parse_graph(text)


@pytest.mark.no_cover
def test_damaged_text_never_fails_otherwise() -> None:
    text, constants = store_graph(random_graph(5))
    rng = random.Random(0)
    survived = 0
    for _ in range(600):
        position = rng.randrange(len(text))
        damage = rng.choice(["", "(", "%", "]", "0", "-", '"', ",", "é", "{", "*", "?"])
        damaged = text[:position] + damage + text[position + rng.choice([0, 1, 7]) :]
        try:
            parse_graph(damaged, constants)
            survived += 1
        except GraphError as error:
            assert re.match(r"line \d+: ", str(error))
    assert survived < 600


def test_hostile_locations_name_no_file() -> None:
    graph = parse_graph("graph {\n  %x: f32[] = placeholder()  # setup.py:1\n}\n")
    assert graph.nodes[0].loc.source == ""
    assert print_graph(graph).splitlines()[1].endswith("  # setup.py:1")


# ---- every operator ----------------------------------------------------------------------------


def sampled(record: Op, sample: Sample) -> gx.Graph:
    """The graph of one sample call, on placeholders."""
    graph = gx.Graph(seed=1)
    assert record.function is not None
    with graph.as_default():
        operands = []
        for i, shape in enumerate(sample.shapes):
            value = sample.values[i] if i < len(sample.values) else None
            dtype = bool_ if record.name == "where" and i == 0 else record.samples.dtypes[0]
            operands.append(gx.placeholder(dtype, shape) if value is None else gx.constant(value))
        if record.samples.variadic:
            record.function(operands, **sample.kwargs)
        else:
            record.function(*operands, **sample.kwargs)
    return graph


SAMPLED = [name for name, op in OPS.items() if op.samples is not None and op.function is not None]


@pytest.mark.parametrize("name", SAMPLED)
def test_every_operator_round_trips(name: str) -> None:
    for sample in OPS[name].samples.calls:
        graph = sampled(OPS[name], sample)
        text, constants = store_graph(graph, portable=True)
        parsed = parse_graph(text, constants)
        verify(graph)
        verify(parsed)
        assert store_graph(parsed)[0] == text

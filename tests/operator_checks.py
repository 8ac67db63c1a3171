"""What is checked of every operator, from its record alone; each check raises AssertionError.

A new operator gives `samples` and writes no test.  Imports: graphc, NumPy.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from operator_loops import run_loops

import graphc as gx
from graphc.errors import GraphTypeError, ShapeError
from graphc.node import OPS, Node, Op, Tensor
from graphc.ops.define import Sample, Samples
from graphc.types import DType, TensorType, as_dtype, bool_, float64

Array = np.ndarray[Any, Any]

DEVICES = ("reference", "cpu")
RELATIVE = {"f32": 1e-5, "f64": 1e-12}
STEP = 1e-6

STATIC, SYMBOLIC, UNRANKED = "static", "symbolic", "unranked"
REFUSAL = re.compile(
    r"unknown rank|not known|unknown size|must be (known|static|constant)|at least 2 axes here"
)
"""What an operator says when it cannot be built, or run, with sizes or ranks unknown at first."""


def sampled_records() -> list[Op]:
    """The operators that state what they are tested on."""
    return [r for r in OPS.values() if r.samples is not None and r.samples.calls]


# ---- drawing operands --------------------------------------------------------------------------


def operand_dtypes(record: Op, dtype: DType, count: int) -> list[DType]:
    """The dtype of each operand: `dtype`, after a bool where the type rule wants a condition."""
    if record.kind == "elementwise" and count > 1:
        try:
            record.infer([TensorType(dtype, None)] * count, {})
        except GraphTypeError:
            return [bool_] + [dtype] * (count - 1)
    return [dtype] * count


def draw(
    samples: Samples,
    shape: tuple[int, ...],
    dtype: DType,
    rng: np.random.Generator,
    edges: bool = False,
) -> Array:
    """Values from the operator's domain; with `edges`, a third of them are edge values."""
    if dtype.is_bool:
        return np.asarray(rng.random(shape) < 0.5)
    if dtype.is_integer:
        info = np.iinfo(dtype.numpy)
        low = int(max(np.ceil(samples.low), info.min))
        high = int(max(min(np.floor(samples.high), info.max), low))
        return np.asarray(rng.integers(low, high + 1, shape)).astype(dtype.numpy)
    values = np.asarray(rng.uniform(samples.low, samples.high, shape)).astype(dtype.numpy)
    if edges and samples.edges:
        chosen = rng.choice(np.array(samples.edges, dtype.numpy), shape)
        values = np.where(rng.random(shape) < 1 / 3, chosen, values)
    return values


def edge_grid(record: Op, dtype: DType, rng: np.random.Generator) -> list[Array]:
    """Every combination of edge values of an elementwise operator's operands."""
    samples: Samples = record.samples
    count = len(samples.calls[0].shapes)
    axes: list[Array] = []
    for kind in operand_dtypes(record, dtype, count):
        if kind.is_bool:
            axes.append(np.array([False, True]))
            continue
        drawn = draw(samples, (1,), kind, rng)
        axes.append(np.concatenate([np.array(samples.edges, kind.numpy), drawn]))
    return [g.reshape(-1) for g in np.meshgrid(*axes, indexing="ij")]


# ---- building calls ----------------------------------------------------------------------------


@dataclass
class Call:
    """One application of an operator's public function to placeholders, with their values."""

    label: str
    inputs: list[Tensor]
    arrays: list[Array]
    outputs: list[Tensor] = field(default_factory=list)

    @property
    def feeds(self) -> dict[Tensor, Array]:
        return dict(zip(self.inputs, self.arrays, strict=True))


def operands(record: Op, sample: Sample, dtype: DType, label: str, edges: bool) -> list[Array]:
    """The values a sample is called with, the same in every run."""
    rng = np.random.default_rng(zlib.crc32(label.encode()))
    samples: Samples = record.samples
    kinds = operand_dtypes(record, dtype, len(sample.shapes))
    arrays = []
    for i, (shape, kind) in enumerate(zip(sample.shapes, kinds, strict=True)):
        drawn = draw(samples, shape, kind, rng, edges)
        given = sample.values[i] if i < len(sample.values) else None
        if given is None:
            arrays.append(drawn)
            continue
        array = np.asarray(given)
        arrays.append(array.astype(kind.numpy) if array.dtype.kind == "f" else array)
    return arrays


def build(
    record: Op,
    sample: Sample,
    arrays: Sequence[Array],
    label: str,
    shaping: str = STATIC,
) -> Call:
    """Apply the operator's function in the current graph."""
    inputs = []
    for a in arrays:
        shape = {STATIC: a.shape, SYMBOLIC: (None,) * a.ndim, UNRANKED: None}[shaping]
        inputs.append(gx.placeholder(as_dtype(a.dtype), shape, name=label))
    call = Call(label, inputs, list(arrays))
    function = record.function
    assert function is not None, f"{record.name} has samples but no public function"
    if record.samples.variadic:
        made = function(inputs, **sample.kwargs)
    else:
        made = function(*inputs, **sample.kwargs)
    call.outputs = list(made) if isinstance(made, (tuple, list)) else [made]
    return call


def all_calls(record: Op, edges: bool = True) -> list[Call]:
    """Every sample in every dtype, static; then the edge values."""
    samples: Samples = record.samples
    calls = []
    for number, sample in enumerate(samples.calls):
        for dtype in samples.dtypes:
            label = f"{record.name}_{number}_{dtype}"
            arrays = operands(record, sample, dtype, label, edges=False)
            calls.append(build(record, sample, arrays, label))
            if edges and samples.edges and dtype.is_float and sample.shapes:
                label += "_edges"
                arrays = operands(record, sample, dtype, label, edges=True)
                calls.append(build(record, sample, arrays, label))
    if edges and record.kind == "elementwise" and samples.edges:
        calls += _grid_calls(record)
    return calls


def _grid_calls(record: Op) -> list[Call]:
    calls = []
    for dtype in record.samples.dtypes:
        if dtype.is_float:
            label = f"{record.name}_grid_{dtype}"
            rng = np.random.default_rng(zlib.crc32(label.encode()))
            arrays = edge_grid(record, dtype, rng)
            sample = Sample((), record.samples.calls[0].kwargs)
            calls.append(build(record, sample, arrays, label))
    return calls


def run_calls(calls: Sequence[Call], graph: gx.Graph, device: str) -> list[list[Array]]:
    """The outputs of every call, from one run."""
    feeds: dict[Tensor, Array] = {}
    for call in calls:
        feeds.update(call.feeds)
    with gx.Session(graph, device=device) as session:
        results: list[list[Array]] = session.run([call.outputs for call in calls], feeds)
    return results


# ---- comparing ---------------------------------------------------------------------------------


def assert_close(actual: Array, wanted: Array, record: Op, label: str) -> None:
    """The same dtype and shape; integers equal; floats within the operator's tolerance."""
    assert actual.dtype == wanted.dtype, f"{label}: dtype {actual.dtype}, not {wanted.dtype}"
    assert actual.shape == wanted.shape, f"{label}: shape {actual.shape}, not {wanted.shape}"
    if wanted.dtype.kind != "f":
        np.testing.assert_array_equal(actual, wanted, err_msg=label)
        return
    relative = RELATIVE[as_dtype(wanted.dtype).name] * record.samples.tolerance
    absolute = relative * 0.1
    if record.kind != "elementwise":  # sums may cancel
        finite = np.abs(wanted[np.isfinite(wanted)])
        absolute = relative * max(1.0, float(finite.max(initial=0.0)))
    np.testing.assert_allclose(actual, wanted, relative, absolute, equal_nan=True, err_msg=label)


# ---- the checks --------------------------------------------------------------------------------


def check_inference(record: Op) -> None:
    """The reference gives the dtype and shape that the type rule promised."""
    graph = gx.Graph(seed=7)
    with graph.as_default():
        calls = all_calls(record)
        results = run_calls(calls, graph, "reference")
        nodes = [n for n in graph.nodes if n.op is record and n.kind != "random"]
        _check_raw_dtypes(nodes, calls, graph)
    for call, values in zip(calls, results, strict=True):
        for t, value in zip(call.outputs, values, strict=True):
            assert value.dtype == t.dtype.numpy, f"{call.label}: {value.dtype} for {t}"
            assert value.shape == t.shape, f"{call.label}: shape {value.shape} for {t}"


def _check_raw_dtypes(nodes: Sequence[Node], calls: Sequence[Call], graph: gx.Graph) -> None:
    """The reference itself returns the promised dtype: the back end would cast silently."""
    feeds: dict[Tensor, Array] = {}
    for call in calls:
        feeds.update(call.feeds)
    with gx.Session(graph, device="reference") as session:
        values = session.run([list(n.inputs) for n in nodes], feeds)
    for node, inputs in zip(nodes, values, strict=True):
        assert node.op.reference is not None
        found = node.op.reference(node.attrs, *inputs)
        listed = found if len(node.types) > 1 else (found,)
        for t, value in zip(node.types, listed, strict=True):
            dtype = np.asarray(value).dtype
            assert dtype == t.dtype.numpy, f"the reference of {node.op.name} gave {dtype} for {t}"


def check_device(record: Op, device: str) -> None:
    """The device computes what the reference does, on every sample, dtype and edge value."""
    graph = gx.Graph(seed=7)
    with graph.as_default():
        calls = all_calls(record)
        wanted = run_calls(calls, graph, "reference")
        actual = run_calls(calls, graph, device)
    for call, ours, theirs in zip(calls, actual, wanted, strict=True):
        for a, w in zip(ours, theirs, strict=True):
            assert_close(a, w, record, call.label)


def check_shapes(record: Op, device: str) -> None:
    """Built with symbolic sizes, or without ranks, the operator computes the same values.

    An operator may refuse to be built so, in words; it may not give another value.
    """
    samples: Samples = record.samples
    graph = gx.Graph(seed=7)
    dtype = samples.dtypes[0]
    with graph.as_default():
        for number, sample in enumerate(samples.calls):
            if not sample.shapes:
                continue
            label = f"{record.name}_{number}"
            arrays = operands(record, sample, dtype, label, edges=False)
            static = build(record, sample, arrays, label)
            wanted = run_calls([static], graph, "reference")[0]
            for shaping in (SYMBOLIC, UNRANKED):
                call = _build_or_refuse(record, sample, arrays, f"{label}_{shaping}", shaping)
                if call is not None:
                    _compare_shaped(record, call, wanted, graph, device)


def _build_or_refuse(
    record: Op, sample: Sample, arrays: Sequence[Array], label: str, shaping: str
) -> Call | None:
    try:
        return build(record, sample, arrays, label, shaping)
    except (ShapeError, GraphTypeError) as error:
        assert REFUSAL.search(str(error)), f"{label}: refused without saying why: {error}"
        return None


def _compare_shaped(
    record: Op, call: Call, wanted: Sequence[Array], graph: gx.Graph, device: str
) -> None:
    try:
        (actual,) = run_calls([call], graph, device)
    except ShapeError as error:
        assert REFUSAL.search(str(error)), f"{call.label}: refused without saying why: {error}"
        return
    assert len(actual) == len(wanted), f"{call.label}: {len(actual)} outputs"
    for t, a, w in zip(call.outputs, actual, wanted, strict=True):
        assert_close(a, w, record, call.label)
        if t.shape is not None:
            fits = len(t.shape) == a.ndim and all(
                not isinstance(d, int) or d == n for d, n in zip(t.shape, a.shape, strict=True)
            )
            assert fits, f"{call.label}: value of shape {a.shape} for {t}"


# ---- gradients ---------------------------------------------------------------------------------


@dataclass
class _Differentiated:
    """A call with random weights w and v: L = <w, y>, g = dL/dx, G = <v, g>, h = dG/d(x, w)."""

    call: Call
    moved: list[Tensor]  # what is perturbed: the differentiated operands, then the weights
    weights: list[Tensor]
    first: list[Tensor]  # dL/d(moved)
    second: list[Tensor]  # dG/d(moved)
    loss: Tensor
    projected: Tensor


def _inner(pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    total: Tensor = gx.constant(0.0, "f64")
    for a, b in pairs:
        total = gx.add(total, gx.sum(gx.multiply(a, b)))
    return total


def _differentiate(
    record: Op, sample: Sample, label: str, wrt: Sequence[int]
) -> tuple[_Differentiated, dict[Tensor, Array]]:
    rng = np.random.default_rng(zlib.crc32(label.encode()) + 1)
    arrays = operands(record, sample, float64, label, edges=False)
    call = build(record, sample, arrays, label)
    xs = [call.inputs[i] for i in wrt]
    # differences of float32 values mean nothing, so outputs of other widths are left out
    ys = [y for y in call.outputs if y.dtype is float64]
    feeds = call.feeds
    weights = []
    for y in ys:
        weight = gx.placeholder("f64", y.shape, name=f"{label}_weight")
        feeds[weight] = rng.standard_normal(y.shape)
        weights.append(weight)
    moved = xs + weights
    loss = _inner(list(zip(weights, ys, strict=True)))
    first = gx.gradients(loss, moved, unconnected_gradients="zero")
    vs = [gx.constant(rng.standard_normal(x.shape)) for x in xs]
    projected = _inner(list(zip(vs, first, strict=False)))
    second = gx.gradients(projected, moved, unconnected_gradients="zero")
    return _Differentiated(call, moved, weights, first, second, loss, projected), feeds


def check_gradient(record: Op, device: str = "reference", orders: tuple[int, ...] = (1, 2)) -> None:
    """First and second derivatives agree with differences of the reference, in random directions.

    The weights of the outputs are perturbed too, so rules must be differentiable by g as well.
    """
    samples: Samples = record.samples
    assert float64 in samples.dtypes, f"{record.name}: gradients are checked in f64"
    graph = gx.Graph(seed=7)
    with graph.as_default():
        built: list[_Differentiated] = []
        feeds: dict[Tensor, Array] = {}
        for number, sample in enumerate(samples.calls):
            wrt = [i for i in _float_operands(record, sample) if i in _wrt(samples, sample)]
            d, fed = _differentiate(record, sample, f"{record.name}_{number}", wrt)
            built.append(d)
            feeds.update(fed)
        with gx.Session(graph, device=device) as session:
            analytic = session.run([[d.first, d.second] for d in built], feeds)
        for seed in range(2):
            _compare_direction(record, built, analytic, feeds, graph, seed, orders)


def _wrt(samples: Samples, sample: Sample) -> Sequence[int]:
    """The operands to differentiate by; all of them where they come as one list."""
    return range(len(sample.shapes)) if samples.variadic else samples.gradient


def _float_operands(record: Op, sample: Sample) -> list[int]:
    arrays = operands(record, sample, float64, record.name, edges=False)
    return [i for i, a in enumerate(arrays) if a.dtype.kind == "f"]


def _compare_direction(
    record: Op,
    built: Sequence[_Differentiated],
    analytic: Any,
    feeds: dict[Tensor, Array],
    graph: gx.Graph,
    seed: int,
    orders: tuple[int, ...],
) -> None:
    rng = np.random.default_rng(seed)
    directions = {t: rng.standard_normal(feeds[t].shape) for d in built for t in d.moved}
    fetches = [[d.loss, d.projected] for d in built]
    with gx.Session(graph, device="reference") as session:

        def at(step: float) -> Array:
            moved = {t: feeds[t] + step * move for t, move in directions.items()}
            return np.array(session.run(fetches, {**feeds, **moved}))

        here = at(0.0)
        slopes = (at(STEP) - at(-STEP)) / (2 * STEP)
    for k, (d, found) in enumerate(zip(built, analytic, strict=True)):
        for order in orders:
            parts = [
                np.asarray(g) * directions[t]
                for g, t in zip(found[order - 1], d.moved, strict=True)
            ]
            for g, t in zip(found[order - 1], d.moved, strict=True):
                assert g.shape == feeds[t].shape, f"{d.call.label}: gradient of shape {g.shape}"
            wanted, actual = slopes[k, order - 1], sum(float(p.sum()) for p in parts)
            size = sum(float(np.abs(p).sum()) for p in parts)
            limit = 1e-6 * record.samples.tolerance * (size + 1e-2 * (1 + abs(here[k, order - 1])))
            assert abs(actual - wanted) <= limit, (
                f"{d.call.label}: derivative of order {order} along a random direction is "
                f"{actual}, by differences {wanted}"
            )


# ---- loops -------------------------------------------------------------------------------------


def check_loops(record: Op) -> None:
    """The scalar body or loop nest, interpreted word by word, gives the reference's values."""
    graph = gx.Graph(seed=7)
    with graph.as_default():
        calls = all_calls(record)
        nodes = [n for n in graph.nodes if n.op is record]
        feeds: dict[Tensor, Array] = {}
        for call in calls:
            feeds.update(call.feeds)
        with gx.Session(graph, device="reference") as session:
            values = session.run([[list(n.inputs), list(n.outputs)] for n in nodes], feeds)
    for node, (inputs, outputs) in zip(nodes, values, strict=True):
        found = run_loops(node, inputs)
        for a, w in zip(found, outputs, strict=True):
            assert_close(a, w, record, f"loops of {node.name}")


# ---- completeness ------------------------------------------------------------------------------

SAMPLED_KINDS = ("elementwise", "view", "reduce", "contraction", "nest", "random")
LOWERED_KINDS = ("elementwise", "reduce", "nest", "random", "deferred")


def check_complete(record: Op, is_reached: Callable[[Op], bool]) -> None:
    """An operator has a meaning, a lowering and samples, or is reached by those of others."""
    if record.reference is None and record.kind not in ("state", "random"):
        assert record.note, f"{record.name}: no reference and no note saying why"
    if record.kind in LOWERED_KINDS:
        assert record.lower is not None, f"{record.name}: no lowering"
    if record.kind in SAMPLED_KINDS:
        sampled = record.samples is not None and record.samples.calls
        assert sampled or is_reached(record), f"{record.name}: no samples"
    if record.vjp is not None and record.samples is not None and record.samples.calls:
        gradient = record.samples.gradient
        floats = any(d.is_float for d in record.samples.dtypes)
        assert gradient or not floats, f"{record.name}: has a gradient that no sample checks"

"""Feeds: from what users pass to arrays of the declared dtype and shape, and to sizes.

Imports: foreign, graph, dims, types, errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from graphc import dims, foreign
from graphc.constraints import Constraint
from graphc.dims import Atom, Dim
from graphc.errors import FeedError, FeedTypeError, ShapeError
from graphc.location import Location
from graphc.node import Node, Tensor, topological
from graphc.types import DType

Array = np.ndarray[Any, Any]


def convert(t: Tensor, value: Any) -> Array:
    """`value` as a C-contiguous array of t's dtype.

    Python numbers and lists, other float widths and safe integer widths are converted, and what
    shares its memory by the buffer protocol, `__array__` or DLPack is taken without a copy; an
    integer that does not fit, a float fed to an integer tensor, text, symbolic tensors, masked
    elements and memory of other devices are refused.
    """
    target = t.dtype.numpy
    if type(value) is np.ndarray and value.dtype == target and value.flags.c_contiguous:
        return value
    if isinstance(value, (Tensor, Node)):
        raise FeedTypeError(f"{label(t)} was fed a symbolic tensor, {value!r}: feed its value")
    try:
        array = foreign.as_array(value)
    except foreign.NoArray as error:
        raise FeedTypeError(f"{label(t)} was fed a value that is no array: {error}") from None
    if array.dtype.kind not in "fiub":
        raise FeedTypeError(f"{label(t)} was fed {_kind_text(value, array)}")
    if array.dtype != target:
        array = _cast(t, t.dtype, array)
    return np.asarray(array, order="C")


def _kind_text(value: Any, array: Array) -> str:
    return f"{type(value).__name__} of dtype {array.dtype}, which is not numeric"


def _cast(t: Tensor, dtype: DType, array: Array) -> Array:
    if dtype.is_float:
        with np.errstate(all="ignore"):
            return array.astype(dtype.numpy)
    if array.dtype.kind == "f" or (dtype.is_bool and array.dtype.kind != "b"):
        if array.size == 0:
            return array.astype(dtype.numpy)
        raise FeedTypeError(f"{label(t)} was fed {array.dtype}, which does not convert safely")
    if dtype.is_integer and array.dtype.kind in "iu" and array.size:
        info = np.iinfo(dtype.numpy)
        low, high = int(array.min()), int(array.max())
        if low < info.min or high > info.max:
            bad = low if low < info.min else high
            raise FeedTypeError(f"{label(t)} was fed {bad}, which does not fit {dtype}")
    return array.astype(dtype.numpy)


def label(t: Tensor) -> str:
    """A fed tensor for error messages."""
    kind = "placeholder" if t.node.op.name == "placeholder" else "tensor"
    return f"{kind} {t.node.name!r} {t.type} ({t.node.loc})"


def unfed_placeholder(roots: Sequence[Node], fed: Sequence[Tensor]) -> Tensor | None:
    """The first placeholder that the roots need and `fed` lacks."""
    given = {id(t) for t in fed}
    stop = {t.node.id for t in fed if all(id(o) in given for o in t.node.outputs)}
    for node in topological(roots, stop=stop):
        if node.op.name == "placeholder" and id(node.outputs[0]) not in given:
            return node.outputs[0]
    return None


def require_fed(fetched: Sequence[Node], fed: Sequence[Tensor]) -> None:
    """Raise FeedError where a fetch needs a placeholder that is not fed."""
    missing = unfed_placeholder(fetched, fed)
    if missing is not None:
        wanted = [f"{n.name!r} ({n.loc})" for n in fetched]
        has = ", ".join(repr(t.node.name) for t in fed) or "nothing"
        raise FeedError(f"fetch {', '.join(wanted)} needs {label(missing)}; feed_dict has {has}")


def bind_sizes(inputs: Sequence[Tensor], shapes: Sequence[tuple[int, ...]]) -> dict[Atom, int]:
    """The value of every symbol from the shapes fed; raises FeedError naming both shapes."""
    sizes: dict[Atom, int] = {}
    origin: dict[Atom, Tensor] = {}
    for t, shape in zip(inputs, shapes, strict=True):
        declared = t.type.shape
        if declared is None:
            continue
        if len(declared) != len(shape):
            raise FeedError(f"{label(t)} was fed an array of shape {shape}")
        for d, n in zip(declared, shape, strict=True):
            if not isinstance(d, Dim):
                if d != n:
                    raise FeedError(f"{label(t)} was fed an array of shape {shape}")
                continue
            ((monomial, _),) = d.terms
            (atom,) = monomial
            known = sizes.setdefault(atom, n)
            if known != n:
                raise FeedError(
                    f"size {atom.name!r} is {known} in {label(origin[atom])} but {n} in {label(t)}"
                )
            origin.setdefault(atom, t)
    return sizes


def check_constraints(
    constraints: Sequence[tuple[Constraint, Location]], sizes: dict[Atom, int]
) -> None:
    """Raise ShapeError, with the user's line, where sizes break a relation."""
    for c, loc in constraints:
        try:
            a, b = dims.evaluate(c.a, sizes), dims.evaluate(c.b, sizes)
        except ShapeError as error:
            raise ShapeError(f"{c.message}: {error}\n  at {loc}   {loc.source}") from None
        if c.kind == "equal":
            ok = a == b
        elif c.kind == "multiple":
            ok = (a == 0) if b == 0 else a % b == 0
        else:
            ok = a >= b
        if not ok:
            where = f" ({c.a} = {a}, {c.b} = {b})"
            raise ShapeError(f"{c.message}{where}\n  at {loc}   {loc.source}")

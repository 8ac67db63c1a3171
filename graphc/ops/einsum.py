"""Sums of products over named axes: einsum, tensordot, dot, inner, outer.

Everything becomes one `matmul` per pair of operands: batch axes first, then the axes kept of one
operand, and the contracted axes, merged into one.
Imports: ops.define, ops.linalg, ops.shape, ops.arithmetic, ops.create, ops.reduce, graph, dims.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

import numpy as np

from graphc import dims
from graphc.constraints import require_equal
from graphc.dims import DimLike
from graphc.errors import GraphTypeError, ShapeError
from graphc.node import OPERATORS, Tensor
from graphc.ops.arithmetic import equal, multiply, where
from graphc.ops.create import iota
from graphc.ops.define import as_tensors, normalize_axis, promoted
from graphc.ops.linalg import matmul
from graphc.ops.reduce import sum as reduce_sum
from graphc.ops.shape import broadcast_to, expand_dims, reshape, transpose

Labels = tuple[str, ...]

# ---- the contraction of two labelled tensors ---------------------------------------------------


def _arranged(x: Tensor, labels: Labels, wanted: Labels) -> Tensor:
    """x with its axes in the order `wanted`; labels it lacks become axes of size 1."""
    have = [name for name in wanted if name in labels]
    perm = [labels.index(name) for name in have]
    if perm != list(range(len(perm))):
        x = transpose(x, perm)
    if len(have) == len(wanted):
        return x
    rest = iter(x.dims)
    return reshape(x, tuple(next(rest) if name in have else 1 for name in wanted))


def _summed(x: Tensor, labels: Labels, keep: Sequence[str]) -> tuple[Tensor, Labels]:
    """x summed over the labels that are not in `keep`."""
    gone = tuple(i for i, name in enumerate(labels) if name not in keep)
    if not gone:
        return x, labels
    return _sum(x, gone), tuple(name for name in labels if name in keep)


def _sum(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    total = reduce_sum(x, axis=axes)
    result: Tensor = OPERATORS["astype"](total, x.dtype)
    return result


def contract(a: Tensor, a_labels: Labels, b: Tensor, b_labels: Labels, out: Labels) -> Tensor:
    """The sum over labels not in `out` of a * b; labels within an operand differ."""
    a, a_labels = _summed(a, a_labels, (*b_labels, *out))
    b, b_labels = _summed(b, b_labels, (*a_labels, *out))
    shared = [name for name in a_labels if name in b_labels]
    inner = tuple(name for name in shared if name not in out)
    batch = tuple(name for name in out if name in shared)
    left = tuple(name for name in out if name in a_labels and name not in shared)
    right = tuple(name for name in out if name in b_labels and name not in shared)
    if not inner:
        order = (*batch, *left, *right)
        product = multiply(_arranged(a, a_labels, order), _arranged(b, b_labels, order))
        return _arranged(product, order, out)
    a, b = _equal_inner(a, a_labels, b, b_labels, inner)
    a = _arranged(a, a_labels, (*batch, *left, *inner))
    b = _arranged(b, b_labels, (*batch, *inner, *right))
    nb, nl, ni = len(batch), len(left), len(inner)
    m_dims, n_dims = a.dims[nb : nb + nl], b.dims[nb + ni :]
    k = dims.product(a.dims[nb + nl :])
    rows = reshape(a, (*a.dims[:nb], dims.product(m_dims), k))
    columns = reshape(b, (*b.dims[:nb], k, dims.product(n_dims)))
    product = matmul(rows, columns)
    shaped = reshape(product, (*product.dims[:nb], *m_dims, *n_dims))
    return _arranged(shaped, (*batch, *left, *right), out)


def _equal_inner(
    a: Tensor, a_labels: Labels, b: Tensor, b_labels: Labels, inner: Labels
) -> tuple[Tensor, Tensor]:
    """Contracted axes of size 1 repeated to the size of their partner."""
    sizes = {}
    for name in inner:
        d, e = a.dims[a_labels.index(name)], b.dims[b_labels.index(name)]
        sizes[name] = e if d == 1 else d
    return _resized(a, a_labels, sizes), _resized(b, b_labels, sizes)


def _resized(x: Tensor, labels: Labels, sizes: dict[str, DimLike]) -> Tensor:
    shape = tuple(
        sizes[name] if d == 1 and name in sizes else d
        for name, d in zip(labels, x.dims, strict=True)
    )
    return broadcast_to(x, shape)


# ---- einsum ------------------------------------------------------------------------------------


def einsum(equation: str, *operands: Any) -> Tensor:
    """The sum of products that `equation` states, as np.einsum: 'bij,bjk->bik'.

    Takes any number of operands, repeated labels in an operand (diagonals) and '...'; without
    '->' the result has the labels that occur once, in alphabetical order.  Ranks must be known.
    Operands are contracted from left to right.  Raises ShapeError or GraphTypeError.
    """
    tensors = promoted("einsum", as_tensors(*operands))
    terms, out = _parse(equation, tensors)
    _check_sizes(equation, tensors, terms)
    pending = [_diagonal(t, labels) for t, labels in zip(tensors, terms, strict=True)]
    x, labels = pending[0]
    for i, (y, more) in enumerate(pending[1:], 1):
        later = {name for _, names in pending[i + 1 :] for name in names}
        keep = tuple(
            name for name in dict.fromkeys((*labels, *more)) if name in out or name in later
        )
        wanted = out if i == len(pending) - 1 else keep
        x, labels = contract(x, labels, y, more, wanted), wanted
    x, labels = _summed(x, labels, out)
    return _arranged(x, labels, out)


def _parse(equation: str, tensors: Sequence[Tensor]) -> tuple[list[Labels], Labels]:
    text = equation.replace(" ", "")
    left, arrow, right = text.partition("->")
    parts = left.split(",")
    if len(parts) != len(tensors):
        raise ShapeError(f"einsum: {len(parts)} terms in {equation!r} for {len(tensors)} operands")
    spans = [
        len(t.dims) - len(p.replace("...", "")) if "..." in p else 0
        for p, t in zip(parts, tensors, strict=True)
    ]
    widest = max(spans)
    dots = tuple(f"...{i}" for i in range(widest))
    terms = [
        _labels(p, dots[widest - n :] if n else (), equation)
        for p, n in zip(parts, spans, strict=True)
    ]
    for labels, t in zip(terms, tensors, strict=True):
        if len(labels) != len(t.dims):
            raise ShapeError(f"einsum: {len(labels)} labels in {equation!r} for {t.type}")
    names = [name for labels in terms for name in labels]
    if arrow:
        out = _labels(right, dots, equation)
    else:
        once = sorted(n for n in set(names) if names.count(n) == 1 and n not in dots)
        out = (*dots, *once)
    if len(set(out)) != len(out):
        raise ShapeError(f"einsum: a label is repeated in the result of {equation!r}")
    for name in out:
        if name not in names:
            raise ShapeError(f"einsum: label {name!r} of the result is in no term of {equation!r}")
    return terms, out


def _labels(term: str, dots: Labels, equation: str) -> Labels:
    before, found, after = term.partition("...")
    letters = before + after
    if any(c not in string.ascii_letters for c in letters):
        raise GraphTypeError(f"einsum: cannot read {term!r} in {equation!r}")
    return (*before, *(dots if found else ()), *after)


def _check_sizes(equation: str, tensors: Sequence[Tensor], terms: Sequence[Labels]) -> None:
    sizes: dict[str, DimLike] = {}
    for t, labels in zip(tensors, terms, strict=True):
        for name, d in zip(labels, t.dims, strict=True):
            known = sizes.setdefault(name, d)
            if isinstance(known, int) and isinstance(d, int) and known != d and 1 not in (known, d):
                raise ShapeError(f"einsum: {name!r} is {known} and {d} in {equation!r}")
            if known == 1:
                sizes[name] = d


def _diagonal(x: Tensor, labels: Labels) -> tuple[Tensor, Labels]:
    """x with repeated labels reduced to their diagonal."""
    for name in dict.fromkeys(labels):
        while labels.count(name) > 1:
            first = labels.index(name)
            second = labels.index(name, first + 1)
            d = x.dims[first]
            require_equal(d, x.dims[second], f"einsum: {name!r} is {d} and {x.dims[second]}")
            shape = tuple(d if i in (first, second) else 1 for i in range(len(labels)))
            same = reshape(equal(expand_dims(iota(d), 1), iota(d)), shape)
            x = _sum(where(same, x, 0), (second,))
            labels = (*labels[:second], *labels[second + 1 :])
    return x, labels


# ---- tensordot, dot, inner, outer --------------------------------------------------------------


def tensordot(a: Any, b: Any, axes: Any = 2) -> Tensor:
    """The product of a and b summed over axes, as np.tensordot.

    axes   how many last axes of a and first axes of b, or (axes of a, axes of b)
    """
    a, b = promoted("tensordot", as_tensors(a, b))
    rank_a, rank_b = len(a.dims), len(b.dims)
    if isinstance(axes, (int, np.integer)):
        if not 0 <= axes <= min(rank_a, rank_b):
            raise ShapeError(f"tensordot over {axes} axes of {a.type} and {b.type}")
        pairs = [(rank_a - int(axes) + i, i) for i in range(int(axes))]
    else:
        of_a, of_b = ((x,) if isinstance(x, (int, np.integer)) else tuple(x) for x in axes)
        if len(of_a) != len(of_b):
            raise ShapeError(f"tensordot: {len(of_a)} axes against {len(of_b)}")
        pairs = [
            (normalize_axis(i, rank_a), normalize_axis(j, rank_b))
            for i, j in zip(of_a, of_b, strict=True)
        ]
    for i, j in pairs:
        text = f"tensordot: axis {i} of {a.type} and axis {j} of {b.type} differ"
        if isinstance(a.dims[i], int) and isinstance(b.dims[j], int) and a.dims[i] != b.dims[j]:
            raise ShapeError(text)
    summed = {j: f"a{i}" for i, j in pairs}
    a_labels = tuple(f"a{i}" for i in range(rank_a))
    b_labels = tuple(summed.get(j, f"b{j}") for j in range(rank_b))
    gone = set(summed.values())
    out = tuple(name for name in (*a_labels, *b_labels) if name not in gone)
    return contract(a, a_labels, b, b_labels, out)


def dot(a: Any, b: Any) -> Tensor:
    """np.dot: the sum over the last axis of a and the second to last (or only) axis of b."""
    a, b = promoted("dot", as_tensors(a, b))
    if not a.dims or not b.dims:
        return multiply(a, b)
    return tensordot(a, b, (-1, -2 if len(b.dims) > 1 else -1))


def inner(a: Any, b: Any) -> Tensor:
    """np.inner: the sum over the last axes of a and b."""
    a, b = promoted("inner", as_tensors(a, b))
    if not a.dims or not b.dims:
        return multiply(a, b)
    return tensordot(a, b, (-1, -1))


def outer(a: Any, b: Any) -> Tensor:
    """np.outer: every product of an element of a and one of b, as a matrix."""
    a, b = promoted("outer", as_tensors(a, b))
    return multiply(reshape(a, (-1, 1)), reshape(b, (1, -1)))


def vdot(a: Any, b: Any) -> Tensor:
    """The sum of a * b over all elements, both flattened."""
    a, b = promoted("vdot", as_tensors(a, b))
    return tensordot(reshape(a, (-1,)), reshape(b, (-1,)), 1)


__all__ = ["dot", "einsum", "inner", "outer", "tensordot", "vdot"]

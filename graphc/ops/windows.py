"""Sliding windows: the sizes and pads that convolutions and pools share, and data layouts.

Imports: ops.define, ops.shape, graph, dims, errors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from graphc import dims
from graphc.constraints import require_at_least
from graphc.dims import Dim, DimLike
from graphc.errors import GraphTypeError, ShapeError
from graphc.node import Tensor
from graphc.ops.shape import transpose

Pads = tuple[tuple[DimLike, DimLike], ...]


def per_axis(value: Any, rank: int, what: str) -> tuple[int, ...]:
    """One positive int per spatial axis from an int or a sequence of `rank` ints."""
    listed = (value,) * rank if isinstance(value, (int, np.integer)) else tuple(value)
    if len(listed) != rank or not all(isinstance(v, (int, np.integer)) for v in listed):
        raise ShapeError(f"{what} is an int or {rank} ints, not {value!r}")
    if any(v < 1 for v in listed):
        raise ShapeError(f"{what} must be positive, not {value!r}")
    return tuple(int(v) for v in listed)


def extent(window: DimLike, dilation: int) -> DimLike:
    """The span of a window whose elements are `dilation` apart."""
    return dims.add(dims.mul(dilation, dims.add(window, -1)), 1)


def same_pads(
    size: DimLike, window: DimLike, stride: int, dilation: int
) -> tuple[DimLike, DimLike]:
    """The pads that give ceil(size / stride) windows, the odd one at the end."""
    span = extent(window, dilation)
    if stride == 1:
        total = dims.add(span, -1)
    else:
        last = dims.mul(dims.add(dims.ceildiv(size, stride), -1), stride)
        needed = dims.add(dims.add(last, span), dims.mul(-1, size))
        total = dims.maximum(needed, 0)
    low = dims.floordiv(total, 2)
    return low, dims.add(total, dims.mul(-1, low))


def window_count(
    size: DimLike, window: DimLike, stride: int, dilation: int, pads: tuple[DimLike, DimLike]
) -> DimLike:
    """How many windows fit along an axis; raises ShapeError if not one does.

    A size that is not known yet is checked when it is: it may be 0, which has no windows.
    """
    span = extent(window, dilation)
    padded = dims.add(size, dims.add(*pads))
    room = dims.add(padded, dims.mul(-1, span))
    if isinstance(room, int) and room < 0:
        raise ShapeError(f"a window of {span} elements on an axis of {padded}")
    return dims.add(dims.floordiv(room, stride), 1)


def require_windows(
    sizes: Sequence[DimLike],
    window: Sequence[DimLike],
    dilations: Sequence[int],
    pads: Pads,
    counts: Sequence[DimLike],
) -> None:
    """State that a window fits along every axis, or that an empty axis has none (infer only)."""
    for size, k, dilation, (low, high), count in zip(
        sizes, window, dilations, pads, counts, strict=True
    ):
        if isinstance(count, int):
            continue
        span = extent(k, dilation)
        padded = dims.add(size, dims.add(low, high))
        message = f"a window of {span} elements on an axis of {padded}"
        require_at_least(count, 0, message)
        room = dims.add(dims.add(padded, dims.mul(-1, span)), 1)
        require_at_least(room, dims.minimum(size, 1), message)


def resolve_padding(
    padding: Any,
    sizes: Sequence[DimLike],
    window: Sequence[DimLike],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> tuple[Pads, tuple[DimLike, ...]]:
    """(pads, number of windows) per axis for 'SAME', 'VALID', an int, ints or (low, high) pairs."""
    axes = list(zip(sizes, window, strides, dilations, strict=True))
    if isinstance(padding, str):
        mode = padding.upper()
        if mode == "SAME":
            pads = tuple(same_pads(*a) for a in axes)
            # stated directly: the general formula is the same number in a form that hides it
            return pads, tuple(dims.ceildiv(a[0], a[2]) for a in axes)
        if mode != "VALID":
            raise GraphTypeError(f"padding is 'SAME', 'VALID' or numbers, not {padding!r}")
        pads = ((0, 0),) * len(axes)
    else:
        pads = _explicit(padding, len(axes))
    counts = tuple(window_count(*a, p) for a, p in zip(axes, pads, strict=True))
    return pads, counts


def _explicit(padding: Any, rank: int) -> Pads:
    listed = (padding,) * rank if isinstance(padding, (int, np.integer)) else tuple(padding)
    pads: list[tuple[DimLike, DimLike]] = []
    for p in listed:
        low, high = (p, p) if isinstance(p, (int, np.integer, Dim)) else tuple(p)
        for end in (low, high):
            if isinstance(end, (int, np.integer)) and end < 0:
                raise ShapeError(f"a padding of {end} elements")
        pads.append((low, high))
    if len(pads) != rank:
        raise ShapeError(f"padding for {len(pads)} axes, not {rank}")
    return tuple(pads)


def unpadded(pads: tuple[DimLike, DimLike]) -> bool:
    """Whether there is no padding, so that every window lies inside."""
    return pads == (0, 0)


def channels_last(
    x: Tensor, data_format: str, compute: Callable[[Tensor], Tensor], rank: int | None = None
) -> Tensor:
    """Apply `compute`, which has its channels last, to x in either layout."""
    spatial = len(x.dims) - 2 if rank is None else rank
    if len(x.dims) != spatial + 2:
        raise ShapeError(
            f"an input with {spatial} spatial axes has {spatial + 2} axes, not {x.type}"
        )
    letters = "DHW"[3 - spatial :] if 0 < spatial <= 3 else ""
    if data_format not in ("NHWC", "NCHW", f"N{letters}C", f"NC{letters}"):
        raise GraphTypeError(
            f"data_format is 'N{letters}C' or 'NC{letters}' here, not {data_format!r}"
        )
    if not data_format.startswith("NC"):
        return compute(x)
    inner = compute(transpose(x, (0, *range(2, spatial + 2), 1)))
    return transpose(inner, (0, spatial + 1, *range(1, spatial + 1)))


# ---- in NumPy ----------------------------------------------------------------------------------


def window_slices(
    offset: Sequence[int], counts: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> tuple[slice, ...]:
    """Where element `offset` of every window lies in the padded spatial axes."""
    return tuple(
        slice(o * d, o * d + s * (n - 1) + 1 if n else 0, s)
        for o, n, s, d in zip(offset, counts, strides, dilations, strict=True)
    )


def padded_array(x: Any, pads: Any, fill: Any, spans: Sequence[int]) -> Any:
    """A channels-last array padded spatially, and further so that every window is inside."""
    widths = [(0, 0)]
    for size, (low, high), span in zip(x.shape[1:-1], pads, spans, strict=True):
        widths.append((low, max(high, span - low - size, 0)))
    return np.pad(x, [*widths, (0, 0)], constant_values=fill)

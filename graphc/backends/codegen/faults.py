"""Recording a failed run-time check: the first fault of a run wins.

The fault record is four i64: flag, check number, linear position, value.  Imports: text, kernel.
"""

from __future__ import annotations

from collections.abc import Sequence

from graphc.backends.codegen.text import FunctionText, scalar_type
from graphc.kernel import LoopKernel
from graphc.types import DType


def record_fault(
    f: FunctionText,
    kernel: LoopKernel,
    number: int,
    value: str,
    ok: str,
    dtype: DType,
    mask: str | None,
    position: Sequence[tuple[str, str]],
    lanes_are_parallel: bool,
) -> None:
    """Record a fault if a lane that is on in `mask` is not ok; the lowest such lane is named.

    `position` are (index, extent) of the parallel axes; with `lanes_are_parallel` the lane adds to
    the last one.
    """
    masks = f.vector("i1")
    bad = f.value(f"xor {masks} {ok}, {f.constant(True, 'i1')}")
    if mask is not None:
        bad = f.value(f"and {masks} {bad}, {mask}")
    bits = f.value(f"bitcast {masks} {bad} to i{f.lanes}")
    label = f.fresh("")
    fault, claimed, after = f"fault{label}", f"claimed{label}", f"z{label}"
    f.branch_if(f.value(f"icmp ne i{f.lanes} {bits}, 0"), fault, after)
    f.label(fault)
    record = f.bases[len(kernel.bufs)]
    swap = f.value(f"cmpxchg ptr {record}, i64 0, i64 1 monotonic monotonic")
    f.branch_if(f.value(f"extractvalue {{ i64, i1 }} {swap}, 1"), claimed, after)
    f.label(claimed)
    lane = _first_lane(f, bits)
    linear = "0"
    for index, extent in position:
        linear = f.add(f.mul(linear, extent), index)
    if lanes_are_parallel:
        linear = f.add(linear, lane)
    s = scalar_type(dtype)
    culprit = value
    if f.lanes > 1:
        culprit = f.value(f"extractelement {f.vector(s)} {value}, i64 {lane}")
    rows = (str(number), linear, _as_i64(f, culprit, dtype))
    for i, row in enumerate(rows, start=1):
        f.emit(f"store i64 {row}, ptr {f.offset(record, 8 * i)}, align 8")
    f.branch(after)
    f.label(after)


def _first_lane(f: FunctionText, bits: str) -> str:
    """The lowest lane on in a mask that is not empty, given as bits."""
    if f.lanes == 1:
        return "0"
    t = f"i{f.lanes}"
    return f.value(f"zext {t} {f.call(t, f'llvm.cttz.{t}', (t, bits), ('i1', 'true'))} to i64")


def _as_i64(f: FunctionText, value: str, dtype: DType) -> str:
    s = scalar_type(dtype)
    if dtype.is_float:
        name = f"llvm.fptosi.sat.i64.{'f32' if s == 'float' else 'f64'}"
        return f.call("i64", name, (s, value))
    if s == "i64":
        return value
    return f.value(f"{'sext' if dtype.is_signed else 'zext'} {s} {value} to i64")

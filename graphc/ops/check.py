"""Run-time checks in the graph: `check_numerics`, `assert_true`.

A failed check stops the run before any variable changes.  Imports: ops.define, types, errors.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from graphc.errors import AssertionFailedError, NonFiniteError
from graphc.graph import make
from graphc.kernel import Expr
from graphc.node import Tensor
from graphc.ops.define import (
    NOT_DIFFERENTIABLE,
    ScalarBuilder,
    as_tensor,
    bind_function,
    elementwise,
    elementwise_infer,
    op,
)
from graphc.types import FLOATS, bool_

# ---- check_finite ------------------------------------------------------------------------------


def _finite_body(s: ScalarBuilder, x: Expr, message: str) -> Expr:
    # x - x is 0 for every finite x and NaN for the others
    return s.check(x, s.eq(s.sub(x, x), 0), NonFiniteError, message)


def _finite_reference(x: Any, message: str) -> Any:
    if not np.isfinite(x).all():
        raise NonFiniteError(message)
    return x


check_finite = elementwise(
    "check_finite",
    dtypes=FLOATS,
    scalar=_finite_body,
    reference=_finite_reference,
    vjp=lambda y, g, x: [g],
    attrs={"message": "a value is not finite"},
    onnx="Identity",
    doc="x itself; the run fails with NonFiniteError where x is NaN or infinite.",
)


def check_numerics(x: Any, message: str = "", name: str | None = None) -> Tensor:
    """x itself; the run fails with NonFiniteError, and `message`, if x holds NaN or infinity."""
    # a brace in the text would be taken for a field of the message
    text = message.replace("{", "(").replace("}", ")") or "a value is not finite"
    result: Tensor = check_finite(x, message=text, name=name)
    return result


# ---- assert_true -------------------------------------------------------------------------------


def _assert_reference(attrs: Any, condition: Any) -> Any:
    if not np.all(condition):
        raise AssertionFailedError(attrs["message"])
    return condition


def _assert_body(s: ScalarBuilder, condition: Expr, message: str) -> Expr:
    return s.check(condition, condition, AssertionFailedError, message)


assert_op = op(
    "assert_true",
    "elementwise",
    infer=elementwise_infer("assert_true", "bool", (bool_,)),
    reference=_assert_reference,
    vjp=NOT_DIFFERENTIABLE,
    lower=_assert_body,
    dtypes=(bool_,),
    note="the bool operand itself; the run fails where it is false",
)


def assert_true(
    condition: Any, message: str = "assertion failed", name: str | None = None
) -> Tensor:
    """`condition`, a bool tensor; the run fails with AssertionFailedError where it is false.

    Checked by every run that fetches it or something ordered behind it by control_dependencies.
    """
    text = message.replace("{", "(").replace("}", ")")
    attrs = {"message": text}
    return make(assert_op, (as_tensor(condition, bool_),), attrs, name).outputs[0]


bind_function(assert_op, assert_true)

"""The float64 vector functions by name.

Imports: lanes, math_exp, math_inverse, math_log, math_power, math_special, math_trig.
"""

from __future__ import annotations

from graphc.backends.codegen import (
    math_exp,
    math_inverse,
    math_log,
    math_power,
    math_special,
    math_trig,
)
from graphc.backends.codegen.lanes import Function

FUNCTIONS64: dict[str, Function] = {
    "exp": math_exp.exp,
    "exp2": math_exp.exp2,
    "expm1": math_exp.expm1,
    "sinh": math_exp.sinh,
    "cosh": math_exp.cosh,
    "tanh": math_exp.tanh,
    "sigmoid": math_exp.sigmoid,
    "log": math_log.log,
    "log1p": math_log.log1p,
    "log2": math_log.log2,
    "log10": math_log.log10,
    "asinh": math_log.asinh,
    "acosh": math_log.acosh,
    "atanh": math_log.atanh,
    "pow": math_power.power,
    "sin": math_trig.sin,
    "cos": math_trig.cos,
    "tan": math_trig.tan,
    "asin": math_inverse.asin,
    "acos": math_inverse.acos,
    "atan": math_inverse.atan,
    "atan2": math_inverse.atan2,
    "cbrt": math_special.cbrt,
    "erf": math_special.erf,
    "erfc": math_special.erfc,
}

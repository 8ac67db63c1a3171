"""Algebra on graphs: one walk with every table of rules, each rule wherever it applies.

    before:  %a = multiply(%x, 1)   %b = add(%a, 1)   %c = log(%b)        after:  %c = log1p(%x)

Constants are folded on the way, as rules make new ones.  The tables: arithmetic, logic and casts,
views, matrix products (all exact), and stability, which is on by default.  What holds only over the
real numbers is `simplify_fast_math`, which is not.
Imports: rewrite, program, passes.fold, passes.simplify_*, passes.stability.
"""

from __future__ import annotations

from graphc.passes.fold import folded
from graphc.passes.simplify_arithmetic import EXACT_RULES, FAST_MATH_RULES
from graphc.passes.simplify_logic import CAST_RULES, LOGIC_RULES
from graphc.passes.simplify_views import MATRIX_RULES, VIEW_RULES, sink_broadcasts
from graphc.passes.stability import STABILITY_RULES
from graphc.program import Program
from graphc.rewrite import Rule, apply_rules

EXACT_TABLE: tuple[Rule, ...] = (
    *EXACT_RULES,
    *LOGIC_RULES,
    *CAST_RULES,
    *VIEW_RULES,
    *MATRIX_RULES,
)

TABLE: tuple[Rule, ...] = (*EXACT_TABLE, *STABILITY_RULES)

ALL_RULES: tuple[Rule, ...] = (*TABLE, *FAST_MATH_RULES)

STEPS = (folded, sink_broadcasts)


def simplify(program: Program) -> Program:
    """Apply the exact rules and the stability rules."""
    return apply_rules(program, TABLE, STEPS)


def simplify_exact(program: Program) -> Program:
    """Apply only the rules that keep every bit of every value."""
    return apply_rules(program, EXACT_TABLE, STEPS)


def simplify_fast_math(program: Program) -> Program:
    """Apply every rule, those too that lose NaN, infinities, signed zeros and roundings."""
    return apply_rules(program, ALL_RULES, STEPS)

"""Passes checked: what replaces a tensor has its value, rule by rule and pass by pass.

A pass tells through `program.WATCH` what it puts in place of what.  Both sides are evaluated in
more digits than the program asks for, so that a difference is a mistake and no rounding.
Imports: program, rewrite, verify, passes, debug.values, debug.report.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

from graphc.debug.report import Finding, FoundError
from graphc.debug.values import Difference, Samples, disagreement, other_zeros
from graphc.errors import GraphcError, VerifyError
from graphc.node import Tensor
from graphc.passes.layout import push_transposes
from graphc.passes.simplify import ALL_RULES
from graphc.program import WATCH, Program
from graphc.rewrite import EXACT
from graphc.text import Printer
from graphc.verify import verify

Pair = tuple[Tensor, Tensor]

CLAIMS = {r.name: r.claim for r in ALL_RULES}

_STEPS = ("folded", "sink_broadcasts", push_transposes.__name__)


@contextlib.contextmanager
def replacements() -> Iterator[list[tuple[str, list[Pair]]]]:
    """What passes replace while they run inside: (rule or '', pairs), in order."""
    seen: list[tuple[str, list[Pair]]] = []
    before = WATCH.see
    WATCH.see = lambda rule, pairs: seen.append((rule, list(pairs)))
    try:
        yield seen
    finally:
        WATCH.see = before


def checked_pass(
    name: str, run: Callable[[Program], Program], program: Program, samples: Samples
) -> tuple[Program, str]:
    """The program after a pass, and what was compared; raises FoundError."""
    replay = f"run {name} on the finding's `subject`, the program before it"

    def found(message: str, rule: str = "", t: Tensor | None = None, **more: Difference) -> None:
        node, locs = ("", ()) if t is None else (described(t), (t.node.loc,))
        raise FoundError(
            Finding(name, message, rule, node, locs, more.get("difference"), program, replay)
        )

    result = program
    with replacements() as seen:
        try:
            result = run(program)
            arrays = [samples.base.given[t] for t in program.inputs]
            samples.give(dict(zip(result.inputs, arrays, strict=True)))
            verify(result, after=name)
        except VerifyError as error:
            found(f"the program is ill-formed: {error}")
        except (GraphcError, ArithmeticError, LookupError, TypeError, ValueError) as error:
            found(f"it raised {type(error).__name__}: {error}")
        except AssertionError as error:
            found(f"an assertion failed: {error}")
    pairs = 0
    for rule, replaced in seen:
        if rule:
            for old, new in replaced:
                difference = _rule_difference(rule, old, new, samples)
                if difference is not None:
                    found(
                        f"{described(new)} is put in place of it", rule, old, difference=difference
                    )
        pairs += len(replaced)
    for old, new in (p for rule, replaced in seen if not rule for p in replaced):
        difference = _difference(old, new, samples, infinities=name != "simplify")
        if difference is not None:
            found("its value is another than before", "", old, difference=difference)
    for old, new in zip(program.roots, result.roots, strict=True):
        difference = _difference(old, new, samples, infinities=name != "simplify")
        if difference is not None:
            found("what the program gives is another than before", "", old, difference=difference)
    if [v for v, _ in program.updates] != [v for v, _ in result.updates]:
        found("other variables are updated than before")
    return result, f"{pairs} tensors and what replaces them"


def _rule_difference(rule: str, old: Tensor, new: Tensor, samples: Samples) -> Difference | None:
    if CLAIMS.get(rule) == EXACT:
        difference = _difference(old, new, samples, infinities=True)
        return difference or other_zeros(samples.of(old), samples.of(new))
    return _difference(old, new, samples, infinities=rule in _STEPS)


def _difference(old: Tensor, new: Tensor, samples: Samples, infinities: bool) -> Difference | None:
    if old is new:
        return None
    a, b = samples.of(old), samples.of(new)
    return disagreement(a, b, old.dtype, lambda n: samples.moved(old, n), infinities)


def described(t: Tensor) -> str:
    """A tensor's line as the text of a program has it."""
    return Printer(True).node(t.node).partition("#")[0].strip()


def same_roots(
    stage: str, old: Sequence[Tensor], new: Program, samples: Samples, message: str
) -> None:
    """Raise FoundError unless the program's roots have the values of the old ones."""
    for a, b in zip(old, new.roots, strict=True):
        difference = _difference(a, b, samples, infinities=True)
        if difference is not None:
            raise FoundError(
                Finding(stage, message, "", described(a), (a.node.loc,), difference, new)
            )

"""Write docs/operators.md from the operator registry: `python docs/generate_operators.py`.

With `--check` nothing is written; the exit status is 1 if the page is not what would be written.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import graphc
from graphc.graph import OPS, Op
from graphc.types import DTYPES, FLOATS, INTEGERS, NUMBERS, DType

PAGE = Path(__file__).with_name("operators.md")

HEAD = """\
# Operators

Made from the registry by `python docs/generate_operators.py`; do not edit.

Each operator is one record in `graphc/ops`: its signature, type rule, NumPy reference, gradient
and lowering. *dtypes* are those of the operands that carry values; mixed operands are promoted
first, as in NumPy. *Gradient* says whether there is a rule for reverse-mode differentiation; no
gradient flows through an operator without one.
"""

FUNCTIONS = """\
## Functions

Every public function: those of operators, and those that compose operators. All work on tensors,
variables, NumPy arrays, numbers and nested lists.
"""

INTERNAL = """\
## Operators made by gradients and passes

They appear in printed graphs; there is no public function for them.
"""

KINDS = {
    "elementwise": "Elementwise: operands broadcast as in NumPy",
    "reduce": "Reductions",
    "contraction": "Contractions",
    "view": "Views: no data moves unless it must",
    "nest": "Loop nests",
    "random": "Random numbers",
    "leaf": "Leaves",
    "state": "State",
    "host": "Python functions inside a graph",
    "deferred": "Compositions that wait for ranks",
}


def operands(record: Op) -> str:
    """The operands of an elementwise operator, as many as its samples feed."""
    return ", ".join("xyzuvw"[: len(record.samples.calls[0].shapes)])


def signature(function: Callable[..., Any]) -> str:
    """The parameters of a function without their annotations."""
    parameters = inspect.signature(function).parameters.values()
    bare = [str(p.replace(annotation=inspect.Parameter.empty)) for p in parameters]
    return ", ".join(p for p in bare if p != "self")


def call(record: Op) -> str:
    """How the operator is called."""
    if record.function is None:
        return record.name
    name = record.function.__name__
    if record.kind == "elementwise" and record.samples is not None:
        return f"{name}({operands(record)})"
    return f"{name}({signature(record.function)})"


def dtypes_text(dtypes: tuple[DType, ...]) -> str:
    """The dtypes in words where a word says it."""
    words = {
        frozenset(DTYPES): "all",
        frozenset(NUMBERS): "numbers",
        frozenset(FLOATS): "floats",
        frozenset(INTEGERS): "integers",
        frozenset(INTEGERS) | (frozenset(DTYPES) - frozenset(NUMBERS)): "integers, bool",
    }
    return words.get(frozenset(dtypes)) or ", ".join(d.name for d in dtypes)


def cell(text: str) -> str:
    return text.partition("\n\n")[0].replace("\n", " ").replace("|", "\\|").strip()


def row(record: Op) -> str:
    tested = record.dtypes or (record.samples.dtypes if record.samples else ())
    gradient = "yes" if record.vjp is not None else "no"
    cells = [f"`{call(record)}`", dtypes_text(tuple(tested)), gradient, record.onnx]
    return "| " + " | ".join([*cells, cell(record.note)]) + " |"


def table(records: list[Op]) -> Iterator[str]:
    yield "| operator | dtypes | gradient | ONNX | note |"
    yield "|---|---|---|---|---|"
    for record in sorted(records, key=lambda r: r.name):
        yield row(record)
    yield ""


def public_functions() -> dict[str, Callable[..., Any]]:
    """The functions of `gx`, `gx.nn` and `gx.random` that graphc/ops and graphc/nn define."""
    found = {}
    for prefix, module in (("gx", graphc), ("gx.nn", graphc.nn), ("gx.random", graphc.random)):
        for name, value in vars(module).items():
            home = getattr(value, "__module__", None) or ""
            ours = home.startswith(("graphc.ops", "graphc.nn"))
            imported = prefix == "gx.random" and home != module.__name__
            if inspect.isfunction(value) and ours and name[0] != "_" and not imported:
                found[f"{prefix}.{name}"] = value
    return found


def function_rows(functions: dict[str, Callable[..., Any]]) -> Iterator[str]:
    records = {id(r.function): r for r in OPS.values() if r.function is not None}
    yield "| function | what it is |"
    yield "|---|---|"
    for name in sorted(functions):
        function = functions[name]
        record = records.get(id(function))
        if record is not None and record.kind == "elementwise" and record.samples is not None:
            parameters = operands(record)
        else:
            parameters = signature(function)
        yield f"| `{name}({parameters})` | {cell(inspect.getdoc(function) or '')} |"
    yield ""


def page() -> str:
    """The whole page."""
    unknown = {r.kind for r in OPS.values()} - set(KINDS)
    if unknown:
        raise LookupError(f"kinds without a heading: {', '.join(sorted(unknown))}")
    functions = public_functions()
    public = {id(f) for f in functions.values()}
    lines = [HEAD]
    for kind, heading in KINDS.items():
        records = [r for r in OPS.values() if r.kind == kind and id(r.function) in public]
        if records:
            lines += [f"## {heading}", "", *table(records)]
    internal = [r for r in OPS.values() if id(r.function) not in public]
    lines += [INTERNAL, *table(internal), FUNCTIONS, *function_rows(functions)]
    lines.append(f"{len(OPS)} operators, {len(functions)} functions.")
    return "\n".join(lines) + "\n"


def main() -> int:
    made = page()
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(made, encoding="utf-8")
        return 0
    if PAGE.exists() and PAGE.read_text(encoding="utf-8") == made:
        return 0
    print(f"{PAGE} is out of date: run python docs/generate_operators.py")
    return 1


if __name__ == "__main__":
    sys.exit(main())

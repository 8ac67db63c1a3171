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
from graphc.node import OPS, Op
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

OTHERS = """\
## Other operators

As they appear in printed graphs: made by gradients, by passes, and by functions that choose among
several operators.
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
    "host": "Python functions in a graph",
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


def call(name: str, function: Callable[..., Any], record: Op | None) -> str:
    """How a function is called."""
    generic = "operands" in inspect.signature(function).parameters
    if generic and record is not None and record.samples is not None:
        return f"{name}({operands(record)})"
    return f"{name}({signature(function)})"


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


def table(rows: dict[str, Op], heading: str) -> Iterator[str]:
    """Operators by what the first column says of them."""
    yield f"| {heading} | dtypes | gradient | ONNX | note |"
    yield "|---|---|---|---|---|"
    for first, record in rows.items():
        tested = record.dtypes or (record.samples.dtypes if record.samples else ())
        gradient = "yes" if record.vjp is not None else "no"
        cells = [f"`{first}`", dtypes_text(tuple(tested)), gradient, record.onnx]
        yield "| " + " | ".join([*cells, cell(record.note)]) + " |"
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
    """Every function with the first paragraph of its documentation."""
    records = {id(r.function): r for r in OPS.values() if r.function is not None}
    yield "| function | what it is |"
    yield "|---|---|"
    for name, function in sorted(functions.items()):
        called = call(name, function, records.get(id(function)))
        yield f"| `{called}` | {cell(inspect.getdoc(function) or '')} |"
    yield ""


def page() -> str:
    """The whole page."""
    unknown = {r.kind for r in OPS.values()} - set(KINDS)
    if unknown:
        raise LookupError(f"kinds without a heading: {', '.join(sorted(unknown))}")
    functions = public_functions()
    # of several names of one function, the operator's own
    names: dict[int, str] = {}
    for name, function in functions.items():
        if id(function) not in names or name.endswith(f".{function.__name__}"):
            names[id(function)] = name
    records = sorted(OPS.values(), key=lambda r: r.name)
    lines = [HEAD]
    for kind, heading in KINDS.items():
        listed = [r for r in records if r.kind == kind and id(r.function) in names]
        rows = {call(names[id(r.function)], r.function, r): r for r in listed if r.function}
        if rows:
            lines += [f"## {heading}", "", *table(rows, "function")]
    others = {r.name: r for r in records if id(r.function) not in names}
    lines += [OTHERS, *table(others, "operator"), FUNCTIONS, *function_rows(functions)]
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

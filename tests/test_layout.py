"""The layers: imports go down only, and each outside library is loaded in one place, lazily."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent / "graphc"

LAYERS = """
cli debug_command doctor demo demo_figures __main__
graphc
nn train export frontends onnx compat
call compilations compiler default_session execution nan_guard variable_store read_write_lock feeds
    fetches session function function_inputs shared memory explanation derivatives custom host_calls
    compile_profile debug plan_cache program_key late_program kept_values placement
    device_feeds
passes backends
ops
node builder graph late_nodes program rewrite text parse parse_values verify
    kernel kernel_work nest plan plan_file plan_text contraction_maps winograd
types tensor_file trace native_self foreign device_array dlpack
dims arena budget constraints location device_names
errors flags forks threads version statistics files findings cache fingerprint
"""
"""What stands below `graphc.`, highest layer first; an indented line continues the one before.

A module may import its own layer and those below it.  `graphc` is the package itself, with every
public name.  Only the layer of sessions and functions sees passes and back ends together.
"""

RANKS = {
    name: -level
    for level, names in enumerate(LAYERS.replace("\n    ", " ").strip().splitlines())
    for name in names.split()
}

GRAPH_FORM = {"graph", "builder", "node", "program", "rewrite", "text", "parse", "verify", "ops"}

SEPARATE = [
    ({"passes"}, {"backends"}),
    ({"kernel", "nest"}, GRAPH_FORM - {"ops"}),
]
"""Groups that never import each other, whatever their layers."""

LIBRARIES = {
    "llvmlite": ("graphc.backends.llvm",),
    "networkx": ("graphc.export",),
    "safetensors": ("graphc.tensor_file", "graphc.export", "graphc.train"),
    "pycuda": ("graphc.backends.gpu",),
    "onnx": ("graphc.onnx", "graphc.frontends"),
    "sklearn": ("graphc.cli", "graphc.demo"),
    "matplotlib": ("graphc.cli", "graphc.demo", "graphc.demo_figures"),
    "rich": ("graphc.cli", "graphc.demo"),
}
"""Outside libraries, and the only modules that may import them, inside functions."""


@dataclass(frozen=True)
class Import:
    """One import statement: who imports what, at which line, when the module loads or later."""

    importer: str
    imported: str
    line: int
    lazy: bool

    def __str__(self) -> str:
        path = self.importer.replace(".", "/")
        return f"{path}.py:{self.line} imports {self.imported}"


def module_files(root: Path = ROOT) -> dict[str, Path]:
    """Path by dotted module name."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(module: str, source: str, modules: set[str]) -> Iterator[Import]:
    """Every import of a module, resolved: `from graphc import dims` imports graphc.dims."""

    def visit(node: ast.AST, lazy: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(module, alias.name, child.lineno, lazy)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{module}:{child.lineno}: relative import"
                for alias in child.names:
                    inner = f"{child.module}.{alias.name}"
                    imported = inner if inner in modules else str(child.module)
                    yield Import(module, imported, child.lineno, lazy)
            typing_only = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)
            inside = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef))
            if not isinstance(child, ast.expr):  # which holds no statement
                yield from visit(child, lazy or typing_only or inside)

    yield from visit(ast.parse(source), lazy=False)


def is_within(module: str, prefix: str) -> bool:
    return module == prefix or module.startswith(prefix + ".")


def part(module: str) -> str:
    """The layer table's name for a module: `graphc.ops.shape` is in `ops`."""
    return module.partition(".")[2].partition(".")[0] or "graphc"


def rank(module: str) -> int:
    """The layer of a module, higher above lower; raises LookupError if the table lacks it."""
    if part(module) not in RANKS:
        raise LookupError(f"{module} is in no layer: give it one in LAYERS")
    return RANKS[part(module)]


def violations(imports: list[Import]) -> list[str]:
    """What breaks the rules of layers, as text."""
    found = []
    for i in imports:
        if not is_within(i.imported, "graphc"):
            continue
        if rank(i.imported) > rank(i.importer):
            found.append(f"{i}: upwards")
        a, b = part(i.importer), part(i.imported)
        if any((a in x and b in y) or (a in y and b in x) for x, y in SEPARATE):
            found.append(f"{i}: {a} and {b} must not know each other")
        reads_graphs = i.importer in ("graphc.backends.reference", "graphc.backends.base")
        if a == "backends" and b in GRAPH_FORM and not reads_graphs:
            found.append(f"{i}: back ends know kernels and plans, not graphs")
    return found


def library_violations(imports: list[Import]) -> list[str]:
    """Outside libraries imported in the wrong place or at module level."""
    found = []
    for i in imports:
        library = i.imported.partition(".")[0]
        homes = LIBRARIES.get(library)
        if homes is None:
            continue
        if not any(is_within(i.importer, home) for home in homes):
            found.append(f"{i}: only {', '.join(homes)} may")
        if not i.lazy:
            found.append(f"{i}: at module level, not on first use")
    return found


MODULES = module_files()


@cache
def all_imports() -> list[Import]:
    """Every import of every module, found when first asked for: most processes never ask."""
    return [
        i
        for module, path in MODULES.items()
        for i in imports_of(module, path.read_text(encoding="utf-8"), set(MODULES))
    ]


@pytest.mark.parametrize("module", MODULES)
def test_every_module_is_in_a_layer(module: str) -> None:
    assert rank(module) <= 0


def test_imports_go_down_only() -> None:
    assert violations(all_imports()) == []


def test_libraries_are_loaded_in_one_place_on_first_use() -> None:
    assert library_violations(all_imports()) == []


def test_modules_load_in_an_order() -> None:
    before: dict[str, set[str]] = {m: set() for m in MODULES}
    for i in all_imports():
        if i.imported in MODULES and not i.lazy:
            before[i.importer].add(i.imported)
    assert len(list(TopologicalSorter(before).static_order())) == len(MODULES)


@pytest.mark.parametrize(
    ("importer", "statement"),
    [
        ("graphc.passes.fuse", "from graphc.backends.llvm import jit"),
        ("graphc.backends.llvm.jit", "import graphc.passes.fuse"),
        ("graphc.backends.llvm.jit", "from graphc.graph import Node"),
        ("graphc.ops.shape", "from graphc.passes import fuse"),
        ("graphc.ops.shape", "def f():\n    from graphc.session import Session"),
        ("graphc.types", "from graphc import graph"),
        ("graphc.kernel", "from graphc.graph import Node"),
        ("graphc.train.saver", "import graphc"),
    ],
)
def test_a_wrong_import_is_found(importer: str, statement: str) -> None:
    assert len(violations(list(imports_of(importer, statement, set(MODULES))))) == 1


@pytest.mark.parametrize(
    ("importer", "statement", "count"),
    [
        ("graphc.backends.llvm.jit", "def f():\n    import llvmlite.binding", 0),
        ("graphc.backends.llvm.jit", "import llvmlite.binding", 1),
        ("graphc.session", "def f():\n    from llvmlite import binding", 1),
        ("graphc.passes.fuse", "import networkx", 2),
        ("graphc.export.dot", "def f():\n    import networkx as nx", 0),
    ],
)
def test_a_wrong_library_import_is_found(importer: str, statement: str, count: int) -> None:
    assert len(library_violations(list(imports_of(importer, statement, set(MODULES))))) == count

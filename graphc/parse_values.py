"""Read the parts of a line of graph text: tokens, sizes, types and attribute values.

Text may come from a file that nobody vouches for: nothing is evaluated, and nesting, digits and the
terms of sizes are bounded.  Imports: dims, graph, location, types.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import numpy as np

from graphc import dims
from graphc.dims import Dim, DimLike
from graphc.location import UNKNOWN, Location
from graphc.node import ConstantValue
from graphc.types import DTYPES, DType, Shape, TensorType

Array = np.ndarray[Any, Any]

MAX_DEPTH = 40
MAX_DIM_TEXT = 4000
MAX_DIM_TERMS = 500
MAX_DIGITS = 40
MAX_RANK = 64

STRING = r'"(?:[^"\\]|\\.)*"'
_TOKEN = re.compile(
    rf"""\s*(?:
      (?P<string>{STRING})
    | (?P<ref>[%^](?:{STRING}|[\w./-]+)(?::\d+)?)
    | (?P<type>[a-z]+\d*\[(?:[^\]"]|{STRING})*\])
    | (?P<dim><(?:[^>"]|{STRING})*>)
    | (?P<hex>0x[0-9a-f]*)
    | (?P<number>-?(?:\d+(?:\.\d+)?(?:e[+-]?\d+)?|(?:inf|nan)\b))
    | (?P<word>[^\W\d]\w*)
    | (?P<comment>\#.*)
    | (?P<punct>:=|[](){{}}[,:=@!])
    )""",
    re.VERBOSE,
)
_DIM_TOKEN = re.compile(rf"\s*({STRING}|\d+|[^\W\d][\w./?]*|[-+*(),])")
_LOCATION = re.compile(r"#\s*(.+):(\d+)\s*$")
_DTYPES = {d.name: d for d in DTYPES}
_FUNCTIONS: dict[str, Callable[[DimLike, DimLike], DimLike]] = {
    "floordiv": dims.floordiv,
    "ediv": dims.exact_div,
    "bc": dims.broadcast,
    "min": dims.minimum,
    "max": dims.maximum,
}


class SyntaxFault(Exception):
    """What is wrong with the line being read; becomes a GraphError with its number."""


def fail(message: str) -> NoReturn:
    raise SyntaxFault(message)


# ---- lines of tokens ---------------------------------------------------------------------------


class Cursor:
    """The tokens of one line, taken one after the other."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens: list[tuple[str, str]] = []
        self.loc = UNKNOWN
        self.at = 0
        position = 0
        end = len(text.rstrip())
        while position < end:
            found = _TOKEN.match(text, position)
            if found is None:
                fail(f"cannot read {text[position : position + 20].strip()!r}")
            kind = found.lastgroup or ""
            if kind == "comment":
                self.loc = _location(found[kind])
            else:
                self.tokens.append((kind, found[kind]))
            position = found.end()

    def peek(self) -> tuple[str, str]:
        return self.tokens[self.at] if self.at < len(self.tokens) else ("end", "")

    def take(self) -> tuple[str, str]:
        token = self.peek()
        self.at += 1
        return token

    def taken(self, text: str) -> bool:
        """Whether the next token is this punctuation or word; it is taken if so."""
        kind, found = self.peek()
        if kind in ("punct", "word") and found == text:
            self.at += 1
            return True
        return False

    def expect(self, text: str) -> None:
        if not self.taken(text):
            fail(f"expected {text!r}, found {self.peek()[1] or 'the end of the line'!r}")

    def kind(self, kind: str) -> str:
        found, text = self.take()
        if found != kind:
            fail(f"expected a {kind}, found {text or 'the end of the line'!r}")
        return text

    def end(self) -> None:
        if self.at < len(self.tokens):
            fail(f"nothing is expected after {self.tokens[self.at - 1][1]!r}")


def _location(comment: str) -> Location:
    """The stored location; in angle brackets, so that no source file is looked for."""
    found = _LOCATION.match(comment)
    if found is None or len(found[2]) > 9:
        return UNKNOWN
    return Location(f"<{found[1]}>", int(found[2]))


def unquoted(text: str) -> str:
    try:
        value = json.loads(text)
    except ValueError:
        fail(f"not a string: {text[:40]}")
    assert isinstance(value, str)
    return value


def integer(text: str) -> int:
    if len(text) > MAX_DIGITS:
        fail(f"a number of {len(text)} digits")
    return int(text)


# ---- sizes -------------------------------------------------------------------------------------


class Symbols:
    """The sizes of one text.  `hint?3` is a size of its own, equal to no other of this process."""

    def __init__(self) -> None:
        self.known: dict[str, Dim] = {}

    def declare(self, line: str) -> None:
        """Make the unknown sizes of a line, in the order of their numbers."""
        words = re.findall(r"[\w./]+\?\d+|[\w./]+", line)  # the second part keeps it linear
        found = {n for n in words if "?" in n and n not in self.known}
        for name in sorted(found, key=_numbered):
            self.known[name] = dims.fresh(name.rpartition("?")[0])

    def size(self, name: str) -> Dim:
        if "?" not in name:
            return dims.symbol(name)
        if name not in self.known:
            self.known[name] = dims.fresh(name.rpartition("?")[0])
        return self.known[name]

    def rename(self, old: DimLike, new: DimLike) -> bool:
        """Let the unknown size `old` be `new` from here on; False if `old` is not one."""
        for name, known in self.known.items():
            if known is old and isinstance(new, Dim):
                self.known[name] = new
                return True
        return False

    def parse(self, text: str) -> DimLike:
        if len(text) > MAX_DIM_TEXT:
            fail(f"a size of {len(text)} characters")
        parser = _DimParser(text, self)
        result = parser.sum(0)
        if parser.peek():
            fail(f"not a size: {text[:60]!r}")
        return result

    def shape(self, text: str) -> Shape | None:
        """The shape between the brackets of a type."""
        if text == "*":
            return None
        if not text.strip():
            return ()
        parser = _DimParser(text, self)
        result = [parser.sum(0)]
        while parser.peek() == ",":
            parser.take()
            result.append(parser.sum(0))
        if parser.peek() or len(result) > MAX_RANK:
            fail(f"not a shape: [{text[:60]}]")
        return tuple(result)

    def type(self, text: str) -> TensorType:
        name, _, rest = text.partition("[")
        if name not in _DTYPES:
            fail(f"not a dtype: {name!r}")
        return TensorType(_DTYPES[name], self.shape(rest[:-1]))


def _numbered(name: str) -> tuple[str, int]:
    hint, _, number = name.rpartition("?")
    return hint, integer(number)


class _DimParser:
    """Recursive descent over sums of products of sizes."""

    def __init__(self, text: str, symbols: Symbols) -> None:
        self.text = text
        self.symbols = symbols
        self.tokens: list[str] = []
        self.at = 0
        position = 0
        end = len(text.rstrip())
        while position < end:
            found = _DIM_TOKEN.match(text, position)
            if found is None:
                fail(f"not a size: {text[:60]!r}")
            self.tokens.append(found[1])
            position = found.end()

    def peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self) -> str:
        token = self.peek()
        self.at += 1
        return token

    def expect(self, token: str) -> None:
        if self.take() != token:
            fail(f"not a size: {self.text[:60]!r}")

    def sum(self, depth: int) -> DimLike:
        if depth > MAX_DEPTH:
            fail("sizes nested too deeply")
        result: DimLike = 0
        sign = -1 if self.peek() == "-" else 1
        if sign < 0:
            self.take()
        result = dims.mul(sign, self.product(depth))
        while self.peek() in ("+", "-"):
            sign = -1 if self.take() == "-" else 1
            result = dims.add(result, dims.mul(sign, self.product(depth)))
            _bounded(result, 1)
        return result

    def product(self, depth: int) -> DimLike:
        result = self.factor(depth)
        while self.peek() == "*":
            self.take()
            factor = self.factor(depth)
            _bounded(result, factor)
            result = dims.mul(result, factor)
        return result

    def factor(self, depth: int) -> DimLike:
        token = self.take()
        if token.isdigit():
            return integer(token)
        if self.peek() == "(" and token in _FUNCTIONS:
            self.take()
            a = self.sum(depth + 1)
            self.expect(",")
            b = self.sum(depth + 1)
            self.expect(")")
            return _FUNCTIONS[token](a, b)
        if token.startswith('"'):
            return dims.symbol(unquoted(token))
        if token and (token[0].isalpha() or token[0] == "_"):
            return self.symbols.size(token)
        fail(f"not a size: {self.text[:60]!r}")


def _bounded(a: DimLike, b: DimLike) -> None:
    """Refuse products that would multiply out to very many terms."""
    sizes = [len(d.terms) if isinstance(d, Dim) else 1 for d in (a, b)]
    if sizes[0] * sizes[1] > MAX_DIM_TERMS:
        fail("a size of too many terms")
    if any(isinstance(d, int) and abs(d) >= 1 << 64 for d in (a, b)):
        fail("a size too large to be one")


# ---- attribute values --------------------------------------------------------------------------


class Values:
    """Reads attribute values; `constants` holds the arrays that the text only names."""

    def __init__(self, constants: Mapping[str, Array], symbols: Symbols) -> None:
        self.constants = constants
        self.symbols = symbols

    def value(self, cursor: Cursor, depth: int = 0) -> Any:
        if depth > MAX_DEPTH:
            fail("values nested too deeply")
        kind, text = cursor.take()
        if kind == "string":
            return unquoted(text)
        if kind == "number":
            return parse_number(text)
        if kind == "type":
            return self._array(text, cursor)
        if kind == "dim":
            return self.symbols.parse(text[1:-1])
        if kind == "word":
            return _word(text)
        if text == "(":
            return self._tuple(cursor, depth)
        if text == "!":
            fail(f"a value of type {cursor.take()[1]!r} has no text form")
        fail(f"expected a value, found {text or 'the end of the line'!r}")

    def _tuple(self, cursor: Cursor, depth: int) -> tuple[Any, ...]:
        items: list[Any] = []
        while not cursor.taken(")"):
            items.append(self.value(cursor, depth + 1))
            if not cursor.taken(","):
                cursor.expect(")")
                break
        return tuple(items)

    def attrs(self, cursor: Cursor) -> dict[str, Any]:
        """`{name=value, ...}`, after the opening brace."""
        found: dict[str, Any] = {}
        while not cursor.taken("}"):
            name = cursor.kind("word")
            if name in found:
                fail(f"attribute {name!r} is given twice")
            cursor.expect("=")
            found[name] = self.value(cursor)
            if not cursor.taken(","):
                cursor.expect("}")
                break
        return found

    def _array(self, text: str, cursor: Cursor) -> ConstantValue:
        declared = self.symbols.type(text)
        shape = declared.shape
        if shape is None or any(isinstance(d, Dim) or d < 0 for d in shape):
            fail(f"not the type of a constant: {text}")
        sizes = tuple(int(str(d)) for d in shape)
        if cursor.taken("@"):
            return ConstantValue(self._stored(cursor.kind("word"), declared.dtype, sizes))
        if cursor.peek()[0] == "hex":
            return ConstantValue(_from_hex(cursor.take()[1], declared.dtype, sizes))
        cursor.expect("(")
        items: list[str] = []
        while not cursor.taken(")"):
            items.append(cursor.take()[1])
            if not cursor.taken(","):
                cursor.expect(")")
                break
        return ConstantValue(from_items(items, declared.dtype, sizes))

    def _stored(self, name: str, dtype: DType, shape: tuple[int, ...]) -> Array:
        found = self.constants.get(name)
        if found is None:
            fail(f"constant @{name} is not given")
        if found.dtype != dtype.numpy or found.shape != shape:
            fail(f"constant @{name} is {found.dtype} {found.shape}, not {dtype.numpy} {shape}")
        return found


def _word(text: str) -> Any:
    if text in _DTYPES:
        return _DTYPES[text]
    named = {"True": True, "False": False, "None": None}
    if text not in named:
        fail(f"not a value: {text!r}")
    return named[text]


def parse_number(text: str) -> int | float:
    """The Python number written in an attribute."""
    if any(c in text for c in ".ein"):
        return float(text)
    return integer(text)


def from_items(items: list[str], dtype: DType, shape: tuple[int, ...]) -> Array:
    """The array with these elements, in C order."""
    if len(items) != int(np.prod(shape, dtype=object)):
        fail(f"{len(items)} elements for shape {shape}")
    flat = np.empty(len(items), dtype.numpy)
    for i, item in enumerate(items):
        flat[i] = _element(item, dtype)
    return flat.reshape(shape)


def _element(item: str, dtype: DType) -> Any:
    if dtype.is_bool:
        if item not in ("True", "False"):
            fail(f"not a bool: {item!r}")
        return item == "True"
    try:
        if dtype.is_float:
            with np.errstate(over="ignore"):
                return dtype.numpy.type(float(item))
        value = integer(item)
    except ValueError:
        fail(f"not a {dtype} number: {item[:40]!r}")
    info = np.iinfo(dtype.numpy)
    if not info.min <= value <= info.max:
        fail(f"{value} does not fit {dtype}")
    return value


def _from_hex(text: str, dtype: DType, shape: tuple[int, ...]) -> Array:
    data = text[2:]
    if len(data) != 2 * dtype.itemsize * int(np.prod(shape, dtype=object)):
        fail(f"{len(data) // 2} bytes for {dtype} {shape}")
    little = dtype.numpy.newbyteorder("<")
    return np.frombuffer(bytes.fromhex(data), little).astype(dtype.numpy).reshape(shape)

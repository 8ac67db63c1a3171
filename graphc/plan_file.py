"""A plan as bytes, and back: what is kept between processes instead of planning again.

A table of values, each once and after those it is made of, so reading is one loop without
recursion.  Of a program's own things, lines and the atoms of sizes, only numbers are written, as
`program_key` gives them out: the reader puts its own program's in their place.  Kernels are not in
it, only their iteration spaces; nor is what is there for printing.  What is read is checked as a
plan before anybody uses it: a damaged file is a `PlanFileError`, never a wrong address.
Imports: plan, arena, dims, types, location, errors, NumPy.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from graphc import errors
from graphc.arena import Slot
from graphc.dims import Atom, Dim, polynomial
from graphc.location import UNKNOWN, Location
from graphc.plan import Check, Kept, Plan, Ref, Space, Step, Value
from graphc.types import DType, TensorType, as_dtype

Array = np.ndarray[Any, Any]

_HEADER = struct.Struct("<QQQ")
_RECORDS: tuple[type[Any], ...] = (
    Plan,
    Step,
    Ref,
    Value,
    Kept,
    Check,
    Slot,
    Space,
    TensorType,
)
_FIELDS = [
    ("dtype", "shape") if record is TensorType else tuple(f.name for f in fields(record))
    for record in _RECORDS
]
_RECORD_NUMBERS = {record: i for i, record in enumerate(_RECORDS)}

_INT, _BOOL, _NONE, _TEXT, _DTYPE, _DIM, _ATOM, _OWN_ATOM, _LINE, _ERROR, _ARRAY, _TUPLE = range(12)
_FIRST_RECORD = 12

_ATOM_KINDS = ("floordiv", "ediv", "bc", "min", "max")


class PlanFileError(Exception):
    """A plan cannot be written, or bytes are not a plan."""


# ---- writing -----------------------------------------------------------------------------------


class _Writer:
    def __init__(self, atoms: dict[Atom, int], lines: dict[Location, int]) -> None:
        self.atoms = atoms
        self.lines = lines
        self.words: list[int] = []
        self.texts: list[bytes] = []
        self.blobs: list[bytes] = []
        self._text_numbers: dict[str, int] = {}
        self._numbers: dict[tuple[int, ...], int] = {}
        self._seen: dict[int, int] = {}
        self._held: list[Any] = []  # so that no id in `_seen` comes to name another object

    def number(self, value: Any) -> int:
        """The number of a value in the table, after those of what it is made of."""
        found = self._seen.get(id(value))
        if found is None:
            row = self._row(value)
            found = self._numbers.get(row)
            if found is None:
                found = self._numbers[row] = len(self._numbers)
                self.words += (row[0], len(row) - 1, *row[1:])
            self._seen[id(value)] = found
            self._held.append(value)
        return found

    def _row(self, value: Any) -> tuple[int, ...]:
        """The kind of a value and the words that say which."""
        record = _RECORD_NUMBERS.get(type(value))
        if record is not None:
            inside = [self.number(getattr(value, name)) for name in _FIELDS[record]]
            return (_FIRST_RECORD + record, *inside)
        if isinstance(value, tuple):
            return (_TUPLE, *map(self.number, value))
        if isinstance(value, bool):
            return _BOOL, int(value)
        if isinstance(value, int):
            return _INT, value
        if isinstance(value, str):
            return _TEXT, self._text(value)
        if isinstance(value, Dim):
            return (_DIM, *self._dim(value))
        if isinstance(value, Atom):
            return self._atom(value)
        if isinstance(value, Location):
            return _LINE, -1 if value == UNKNOWN else self.lines[value]
        return self._rare(value)

    def _rare(self, value: Any) -> tuple[int, ...]:
        if value is None:
            return (_NONE,)
        if isinstance(value, DType):
            return _DTYPE, self._text(value.name)
        if isinstance(value, np.ndarray):
            self.blobs.append(value.tobytes())
            dtype = self._text(as_dtype(value.dtype).name)
            return (_ARRAY, len(self.blobs) - 1, dtype, *value.shape)
        name = value.__name__ if isinstance(value, type) else ""
        if name and getattr(errors, name, None) is value:
            return _ERROR, self._text(name)
        raise PlanFileError(f"a {type(value).__name__} in a plan")

    def _text(self, value: str) -> int:
        found = self._text_numbers.get(value)
        if found is None:
            found = self._text_numbers[value] = len(self.texts)
            self.texts.append(value.encode("utf-8", "surrogatepass"))
        return found

    def _dim(self, value: Dim) -> list[int]:
        words: list[int] = []
        for monomial, coefficient in value.terms:
            words += (coefficient, len(monomial), *map(self.number, monomial))
        return words

    def _atom(self, atom: Atom) -> tuple[int, ...]:
        own = self.atoms.get(atom)
        if own is not None:
            return _OWN_ATOM, own
        if atom.kind not in _ATOM_KINDS:
            raise PlanFileError(f"the size {atom!r} is not the program's")
        return (_ATOM, _ATOM_KINDS.index(atom.kind), *map(self.number, atom.args))


def encode(value: Any, atoms: dict[Atom, int], lines: dict[Location, int]) -> bytes:
    """A value, a plan or a tuple of what plans consist of, as bytes.

    atoms, lines  the numbers of the program's own things; see `program_key.ProgramKey`
    Raises PlanFileError for what cannot be written.
    """
    writer = _Writer(atoms, lines)
    try:
        writer.number(value)
        words = array("q", writer.words).tobytes()
    except (KeyError, OverflowError, RecursionError) as error:
        raise PlanFileError(f"not the program's: {error!r}") from None
    parts = [*writer.texts, *writer.blobs]
    lengths = array("q", map(len, parts)).tobytes()
    header = _HEADER.pack(len(writer.words), len(writer.texts), len(writer.blobs))
    return b"".join([header, words, lengths, *parts])


# ---- reading -----------------------------------------------------------------------------------


def decode(data: bytes, atoms: Sequence[Atom], lines: Sequence[Location]) -> Any:
    """The value that was encoded, in terms of this program's atoms and lines.

    Raises PlanFileError for bytes that are no such thing.
    """
    try:
        return _Reader(data, atoms, lines).value()
    except PlanFileError:
        raise
    except Exception as error:  # whatever damaged bytes make of it
        raise PlanFileError(f"not a plan: {error!r}") from None


class _Reader:
    def __init__(self, data: bytes, atoms: Sequence[Atom], lines: Sequence[Location]) -> None:
        self.atoms = atoms
        self.lines = lines
        words, texts, blobs = _HEADER.unpack_from(data)
        end = _HEADER.size + 8 * words
        if max(words, texts, blobs) > len(data) or end + 8 * (texts + blobs) > len(data):
            raise PlanFileError("shorter than it says")
        self.words = np.frombuffer(data, "<i8", words, _HEADER.size).tolist()
        lengths = np.frombuffer(data, "<i8", texts + blobs, end).tolist()
        at = end + 8 * len(lengths)
        parts: list[bytes] = []
        for length in lengths:
            if length < 0 or at + length > len(data):
                raise PlanFileError("shorter than it says")
            parts.append(data[at : at + length])
            at += length
        self.texts = [part.decode("utf-8", "surrogatepass") for part in parts[:texts]]
        self.blobs = parts[texts:]
        self.values: list[Any] = []

    def value(self) -> Any:
        """The last value of the table, which all others are there for."""
        words, values = self.words, self.values
        makers = self._makers()
        at = 0
        while at < len(words):
            kind, count = words[at], words[at + 1]
            row = words[at + 2 : at + 2 + count]
            if len(row) != count or kind < 0:
                raise PlanFileError("a row without an end, or of no kind")
            at += 2 + count
            if kind < _TUPLE:
                values.append(makers[kind](row))
                continue
            if row and min(row) < 0:
                raise PlanFileError("a number below 0")
            if kind == _TUPLE:
                values.append(tuple([values[i] for i in row]))
            else:
                values.append(_RECORDS[kind - _FIRST_RECORD](*[values[i] for i in row]))
        return values[-1]

    def _makers(self) -> list[Callable[[list[int]], Any]]:
        """By kind of value, before tuples, what makes it from the words of its row."""
        texts, lines, atoms = self.texts, self.lines, self.atoms
        return [
            lambda row: row[0],
            lambda row: bool(row[0]),
            lambda row: None,
            lambda row: texts[_index(row[0])],
            lambda row: as_dtype(texts[_index(row[0])]),
            self._dim,
            self._atom,
            lambda row: atoms[_index(row[0])],
            lambda row: lines[_index(row[0])] if row[0] != -1 else UNKNOWN,
            self._error,
            self._array,
        ]

    def _of(self, row: Sequence[int]) -> list[Any]:
        if min(row, default=0) < 0:
            raise PlanFileError("a number below 0")
        values = self.values
        return [values[i] for i in row]

    def _dim(self, row: list[int]) -> Any:
        terms: list[tuple[list[Atom], int]] = []
        at = 0
        while at < len(row):
            end = at + 2 + _index(row[at + 1])
            terms.append((self._of(row[at + 2 : end]), row[at]))
            at = end
        return polynomial(terms)

    def _atom(self, row: list[int]) -> Atom:
        a, b = self._of(row[1:])
        if not isinstance(a, (int, Dim)) or not isinstance(b, (int, Dim)):
            raise PlanFileError("a size made of something else")
        return Atom.of(_ATOM_KINDS[_index(row[0])], (a, b))

    def _error(self, row: list[int]) -> Any:
        found = getattr(errors, self.texts[_index(row[0])])
        if not issubclass(found, errors.RunError):
            raise PlanFileError("not an error of runs")
        return found

    def _array(self, row: list[int]) -> Array:
        dtype = as_dtype(self.texts[_index(row[1])]).numpy
        shape = [_index(n) for n in row[2:]]
        made = np.frombuffer(self.blobs[_index(row[0])], dtype).reshape(shape)
        made.flags.writeable = False
        return made


def _index(number: int) -> int:
    if number < 0:
        raise PlanFileError("a number below 0")
    return number


# ---- checking ----------------------------------------------------------------------------------


def check_plan(plan: Any, kernels: int, variables: int) -> None:
    """Raise PlanFileError unless what the back end reads of a plan is there and in range.

    kernels, variables  how many there are
    """
    try:
        right = isinstance(plan, Plan) and _is_whole(plan, kernels, variables)
    except (TypeError, AttributeError, LookupError) as error:
        raise PlanFileError(f"not a plan: {error!r}") from None
    if not right:
        raise PlanFileError("not a plan of this program")


def _is_whole(plan: Plan, kernels: int, variables: int) -> bool:
    groups = {
        "slot": plan.slots,
        "input": plan.inputs,
        "output": plan.outputs,
        "state": plan.variables,
        "constant": plan.constants,
        "fault": plan.checks,
        "kept": plan.kept,
    }
    limits = {kind: len(group) for kind, group in groups.items()}
    checked: set[int] = set()

    def exists(ref: Ref) -> bool:
        if id(ref) not in checked:
            if not 0 <= ref.index < limits.get(ref.kind, 0):
                return False
            checked.add(id(ref))
        return True

    return (
        len(plan.spaces) == kernels
        and limits["state"] == variables
        and 0 <= plan.commit <= len(plan.steps)
        and all(_is_value(v) for v in (*plan.inputs, *plan.outputs, *plan.variables))
        and all(isinstance(array, np.ndarray) for array in plan.constants)
        and all(isinstance(check, Check) for checks in plan.checks for check in checks)
        and all(
            slot.members and _are_sizes(slot.members) and all(0 <= i < at for i in slot.above)
            for at, slot in enumerate(plan.slots)
        )
        and all(_is_step(plan, at, step, exists) for at, step in enumerate(plan.steps))
        and _keeps_well(plan, kernels, variables)
    )


def _keeps_well(plan: Plan, kernels: int, variables: int) -> bool:
    """Whether what is kept is what the plan that makes it gives, of sizes that are known."""
    made = plan.keeping
    if made is None:
        return not plan.kept
    return (
        isinstance(made, Plan)
        and made.keeping is None
        and not made.inputs
        and not made.checks
        and made.commit == len(made.steps)
        and made.spaces == plan.spaces
        and tuple(kept.value for kept in plan.kept) == made.outputs
        and _is_whole(made, kernels, variables)
        and all(isinstance(n, int) for v in made.outputs for n in v.type.shape or ())
        and all(isinstance(n, int) for s in made.steps for n in (*s.sizes, s.blocks))
        and all(isinstance(n, int) for slot in made.slots for n in slot.members)
        and all(0 <= i < variables for kept in plan.kept for i in kept.sources)
        and not any(s.args[w].kind == "state" for s in made.steps for w in s.writes)
    )


def _is_step(plan: Plan, at: int, step: Step, exists: Callable[[Ref], bool]) -> bool:
    return (
        0 <= step.kernel < len(plan.spaces)
        and all(map(exists, step.args))
        and all(0 <= w < len(step.args) for w in step.writes)
        and _are_sizes(step.sizes)
        and _are_sizes((step.blocks,))
        and -1 <= step.wait_from <= at
        and len(step.sizes) >= -min(plan.spaces[step.kernel].axes, default=0)
    )


def _is_value(value: Value) -> bool:
    return isinstance(value.type, TensorType) and isinstance(value.type.shape, tuple)


def _are_sizes(sizes: Sequence[Any]) -> bool:
    return all(isinstance(size, (int, Dim)) for size in sizes)

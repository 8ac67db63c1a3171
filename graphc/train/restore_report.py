"""What a checkpoint and a graph have in common, and where they differ.  Imports: nothing."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class RestoreReport:
    """How the variables of a graph and the arrays of a file match, by name.

    matched      variables that the file has, with the same type
    missing      variables that the file lacks, each with the nearest names it has
    unexpected   names in the file that are no variables
    mismatched   (variable, its type, the type in the file)
    Printed, it is a table of variable, array in the file, and what is wrong.
    """

    file: str
    matched: tuple[str, ...]
    missing: tuple[tuple[str, tuple[str, ...]], ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[tuple[str, str, str], ...]
    types: Mapping[str, str]
    stored: Mapping[str, str]

    @property
    def complete(self) -> bool:
        """Whether every variable and every array found its partner."""
        return not (self.missing or self.unexpected or self.mismatched)

    def __str__(self) -> str:
        counts = (
            f"{len(self.matched)} matched, {len(self.missing)} missing, "
            f"{len(self.unexpected)} unexpected, {len(self.mismatched)} of another type"
        )
        rows = [f"{self.file!r}: {counts}"]
        if not self.complete:
            rows += _table(self._differences())
        return "\n".join(rows)

    def _differences(self) -> list[tuple[str, str, str]]:
        rows = [("variable", "in the file", "")]
        for name, near in self.missing:
            hint = f"missing; nearest: {', '.join(near)}" if near else "missing"
            rows.append((f"{name}: {self.types[name]}", "-", hint))
        for name in self.unexpected:
            rows.append(("-", f"{name}: {self.stored[name]}", "unexpected"))
        for name, mine, theirs in self.mismatched:
            what = "shape" if mine.partition("[")[0] == theirs.partition("[")[0] else "dtype"
            rows.append((f"{name}: {mine}", f"{name}: {theirs}", f"{what} differs"))
        return rows


def compare(
    file: str, types: Mapping[str, str], stored: Mapping[str, str], optional: Sequence[str] = ()
) -> RestoreReport:
    """The report for variables and arrays given by name and type; `optional` ones may be missing"""
    matched = [n for n in types if stored.get(n) == types[n]]
    absent = [n for n in types if n not in stored and n not in optional]
    unexpected = [n for n in stored if n not in types]
    return RestoreReport(
        file,
        tuple(matched),
        tuple((n, tuple(difflib.get_close_matches(n, list(stored), 3))) for n in absent),
        tuple(unexpected),
        tuple((n, types[n], stored[n]) for n in types if n in stored and stored[n] != types[n]),
        dict(types),
        dict(stored),
    )


def _table(rows: Sequence[tuple[str, str, str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    return [f"  {a:<{widths[0]}}  {b:<{widths[1]}}  {c}".rstrip() for a, b, c in rows]

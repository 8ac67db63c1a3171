"""The combinations of fetches and feeds that a session's native `run` recognises.

A hash table over the identities of the fetches: each combination has two places, and a new one
takes the place of an old one where both are taken, which the slow `run` then does again.
Imports: entry_methods_text, entry, memory, native_self.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from graphc.backends.llvm.entry import FORMS, NativeEntry
from graphc.backends.llvm.entry_methods_text import (
    HASH,
    MOST_FEEDS,
    PLACES,
    RECORD_WORDS,
    RUN_WORDS,
    SHIFT,
)
from graphc.backends.llvm.memory import address_of
from graphc.native_self import Table, Words


class Record:
    """One combination; it keeps its fetches and keys, so that their identities stay theirs.

    form     of the fetches as they are written, one of entry.FORMS
    fetched  the fetches
    keys     the keys of the feeds, in the order of the entry's arguments
    picks    per fetch, the result of the entry that is its value; -1 for None
    """

    def __init__(
        self,
        form: str,
        fetched: Sequence[Any],
        keys: Sequence[Any],
        picks: Sequence[int],
        entry: NativeEntry,
    ) -> None:
        self._held = (tuple(fetched), tuple(keys), entry)
        number = FORMS.index(form)
        counts = len(fetched), len(keys)
        ids = [*map(id, fetched), *map(id, keys)]
        at = RECORD_WORDS + len(ids)
        self.words: Words = np.zeros(at + 2 + len(picks), np.int64)
        self.words[:5] = address_of(entry.words), number, *counts, id(self)
        self.words[6] = address_of(self.words) + 8 * at
        self.words[RECORD_WORDS:] = [*ids, number, len(picks), *picks]
        self.place = _place(number, fetched, len(keys))

    def was_used(self) -> bool:
        """Whether it has run since this was asked last."""
        used = bool(self.words[5])
        self.words[5] = 0
        return used


class RunTable(Table):
    """What one session recognises; `slow` is its `run`, which does everything."""

    __slots__ = ("_records",)

    def __init__(self, slow: Callable[..., Any]) -> None:
        kinds = (list, tuple, dict, None, _FEED_DICT)
        self.words = np.zeros(RUN_WORDS + PLACES, np.int64)
        self.words[:7] = id(slow), PLACES - 1, *map(id, kinds)
        self._records: list[Record | None] = [None] * PLACES

    def add(self, record: Record) -> None:
        """Recognise this combination from now on."""
        if len(record._held[1]) > MOST_FEEDS:
            return
        place = record.place
        if self._records[place] is not None and self._records[place ^ 1] is None:
            place ^= 1
        self._records[place] = record
        self.words[RUN_WORDS + place] = address_of(record.words)

    def __contains__(self, record: Record) -> bool:
        place = record.place
        return self._records[place] is record or self._records[place ^ 1] is record

    def remove(self, record: Record) -> None:
        """Recognise it no longer; what runs in it goes on."""
        for place in (record.place, record.place ^ 1):
            if self._records[place] is record:
                self.words[RUN_WORDS + place] = 0
                self._records[place] = None


_FEED_DICT = "feed_dict"
"""Equal to the name in every call, and, being interned as all names are, the same object."""


def _place(form: int, fetched: Sequence[Any], feeds: int) -> int:
    """As `entry_methods_text` has it."""
    mixed = feeds << 2 | form
    for f in fetched:
        mixed = ((mixed ^ id(f)) * HASH) & (2**64 - 1)
    mixed = (mixed * HASH) & (2**64 - 1)
    return (mixed >> SHIFT) & (PLACES - 1)

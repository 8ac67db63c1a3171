"""What threads have accumulated, joined: of a warp's lanes by shuffles, of a CTA's threads in
shared memory.  The order is fixed by how many threads there are.
Imports: thread, codegen, kernel.
"""

from __future__ import annotations

from collections.abc import Sequence

from graphc.backends.codegen.reducers import State, combine, state_types
from graphc.backends.gpu.thread import WARP, ThreadText
from graphc.kernel import Accumulator

Group = list[State]
"""The state of each accumulator of a stage."""


def join_lanes(f: ThreadText, acc: Accumulator, states: Sequence[State]) -> State:
    """The states of a warp's lanes, of which each has one or two, by the CPU's tree: vectors of 16
    lanes by pairs, then lanes by halves.  All lanes have the result."""
    states = [_with_lane(f, acc, state, 16) for state in states]
    while len(states) > 1:
        pairs = zip(states[::2], states[1::2], strict=True)
        states = [combine(f, acc, a, b) for a, b in pairs]
    state = states[0]
    for distance in (8, 4, 2, 1):
        state = _with_lane(f, acc, state, distance)
    return state


def _with_lane(f: ThreadText, acc: Accumulator, state: State, distance: int) -> State:
    """The state combined with that of the lane at a distance."""
    pairs = zip(state_types(f, acc), state, strict=True)
    return combine(f, acc, state, tuple(f.shuffle_xor(t, x, distance) for t, x in pairs))


def join_warps(
    f: ThreadText, accs: Sequence[Accumulator], group: Group, thread: str, warps: int
) -> Group:
    """The states of a CTA's warps, which all lanes of each have; all threads have the result."""
    lane = f.value(f"and i64 {thread}, {WARP - 1}")
    warp = f.value(f"lshr i64 {thread}, {WARP.bit_length() - 1}")
    rooms = _Rooms(f, accs, warps)
    f.when(f.value(f"icmp eq i64 {lane}, 0"), lambda: rooms.leave(warp, group))
    f.barrier()
    joined = rooms.find(f.value(f"and i64 {lane}, {warps - 1}"))
    distance = warps // 2
    while distance:
        pairs = zip(accs, joined, strict=True)
        joined = [_with_lane(f, acc, state, distance) for acc, state in pairs]
        distance //= 2
    return joined


def join_parts(
    f: ThreadText, accs: Sequence[Accumulator], group: Group, lane: str, part: str, parts: int
) -> Group:
    """The states of the threads of one lane, one in each of a CTA's warps, in the order of these;
    all threads of the lane have the result."""
    rooms = _Rooms(f, accs, parts * WARP)
    rooms.leave(f.add(f.mul(part, WARP), lane), group)
    f.barrier()
    joined = rooms.find(lane)
    for i in range(1, parts):
        following = rooms.find(f.add(lane, WARP * i))
        rows = zip(accs, joined, following, strict=True)
        joined = [combine(f, acc, a, b) for acc, a, b in rows]
    return joined


class _Rooms:
    """Shared memory for some groups."""

    def __init__(self, f: ThreadText, accs: Sequence[Accumulator], count: int) -> None:
        self._f = f
        self._types = [state_types(f, acc) for acc in accs]
        self._rooms = [[(t, f.shared(t, count)) for t in types] for types in self._types]

    def leave(self, index: str, group: Group) -> None:
        for rooms, state in zip(self._rooms, group, strict=True):
            for (t, room), x in zip(rooms, state, strict=True):
                self._f.store_shared(t, room, index, x)

    def find(self, index: str) -> Group:
        return [
            tuple(self._f.load_shared(t, room, index) for t, room in rooms) for rooms in self._rooms
        ]

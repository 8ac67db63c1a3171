"""Winograd convolutions as machine code: transforms and products of a block of tiles in L2.

    for each block of tiles and filters, for each slice of channels:
        V[point][tile][channel]  <-  B^T d B            of the slice
        for each panel of filters:
            U[point][channel][filter]  <-  G g G^T      (unless a step has done that for all)
            M[point][tile][filter]  +=  V[point] U[point]
    Y  <-  A^T M A  tile by tile, then the epilogue over those of its outputs that exist

V, U and M are four times (m = 2) as large as what they are made of: they never leave the cache.
Blocks share nothing.  Every element of M is one chain of fused multiply-adds in ascending order of
channels, so no bit depends on how tiles, channels and filters are cut.
Imports: the other contract modules, winograd_transforms, winograd, targets, text, kernel, dims.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from graphc.backends.codegen.contract_access import Group, Operand, Record, sum_records
from graphc.backends.codegen.contract_epilogue import Columns, Epilogue
from graphc.backends.codegen.contract_microkernel import (
    UNROLL,
    Tile,
    emit_tile,
    lanes_below,
    masked_load,
)
from graphc.backends.codegen.contract_parts import ceildiv, even_part
from graphc.backends.codegen.contract_winograd_ahead import fetch_outputs, inputs_ahead
from graphc.backends.codegen.contract_winograd_tiling import (
    FEWEST_TILES,
    winograd_tiling,
)
from graphc.backends.codegen.targets import Target
from graphc.backends.codegen.text import LANES, FunctionText, scalar_type
from graphc.backends.codegen.winograd_transforms import (
    Lanes,
    VectorCode,
    transposed_vectors,
)
from graphc.kernel import Contraction
from graphc.winograd import (
    FILTERINGS,
    TAPS,
    Filtering,
    filter_transform,
    input_transform,
    output_transform,
)

PAD = 16
"""Elements between rows in scratch memory, and at least a vector."""

LINE = 64
"""Bytes of a cache line."""


class WinogradEmitter:
    """One kernel being written.

    Axes: image, row, column | filter | tap row, tap column, channel.
    """

    def __init__(self, f: FunctionText, c: Contraction, target: Target) -> None:
        self.f, self.c = f, c
        self.t = winograd_tiling(c, target)
        self.rule: Filtering = FILTERINGS[c.winograd]
        self.lanes = Lanes(scalar_type(c.dtype), c.dtype.itemsize, target.lanes(c.dtype.itemsize))
        self.code = VectorCode(f, self.lanes)
        self.panel = self.t.vectors * self.lanes.lanes
        axes = range(len(c.axes))
        self.x = Operand(f, c.a, c.dtype.itemsize, axes)
        self.w = Operand(f, c.b, c.dtype.itemsize, axes)
        self.epilogue = Epilogue(f, c, Group((3,), c.n))
        self._layout()

    def _layout(self) -> None:
        """Place what is made of a block in one stack allocation."""
        f, size = self.f, self.lanes.itemsize
        tiles, filters, depth = self.t.most
        pad = max(PAD, self.lanes.lanes)
        points, outputs = self.rule.points, self.rule.tile**2
        self.v_row, self.m_row = (depth + pad) * size, (filters + pad) * size
        self.v_plane, self.u_plane, self.m_plane = (
            _odd_lines(n)
            for n in (tiles * self.v_row, depth * self.panel * size, tiles * self.m_row)
        )
        self.y_row = (filters + LANES) * size
        needed = {
            "zeros": self.v_row,
            "taps": 0 if self.c.panel else TAPS * TAPS * self.lanes.lanes * self.panel * size,
            "v": points * self.v_plane,
            "u": 0 if self.c.panel else points * self.u_plane,
            "m": points * self.m_plane,
            "y": outputs * self.y_row,
        }
        memory = f.value(f"alloca [{sum(map(_whole_lines, needed.values()))} x i8], align 64")
        self.scratch: dict[str, str] = {}
        at = 0
        for what, n in needed.items():
            self.scratch[what] = f.offset(memory, at)
            at += _whole_lines(n)
        self._clear(self.scratch["zeros"], str(self.v_row))

    def _clear(self, begin: str, length: str) -> None:
        f = self.f
        clear = f.open_loop(0, length, self.lanes.bytes)
        at = f.offset(begin, clear.index)
        f.emit(f"store {self.lanes.vector} zeroinitializer, ptr {at}, align {self.lanes.bytes}")
        f.close_loop(clear)

    @contextmanager
    def _loop(self, stop: str | int, step: str | int = 1) -> Iterator[str]:
        """A loop from 0 that carries nothing."""
        loop = self.f.open_loop(0, stop, step)
        yield loop.index
        self.f.close_loop(loop)

    # ---- blocks

    def emit(self) -> None:
        f, t, tile = self.f, self.t, self.rule.tile
        images, self.height, self.width = (f.dim(n) for n in self.c.m)
        self.filter_count, self.channel_count = f.dim(self.c.n[0]), f.dim(self.c.k[-1])
        # of what has size 0 no block runs, but the text must not divide by a constant 0
        self.down, self.across = (
            f.smax(ceildiv(self.f, n, tile), 1) for n in (self.height, self.width)
        )
        tiles = f.mul(images, f.mul(self.down, self.across))
        by_tiles, by_filters = self._block_counts(tiles)
        blocks = f.open_loop("%b0", "%b1", 1)
        if self.c.panel:  # those that follow each other read the same filters
            column, row = f.udiv(blocks.index, by_tiles), f.urem(blocks.index, by_tiles)
        else:
            row, column = f.udiv(blocks.index, by_filters), f.urem(blocks.index, by_filters)
        self.tile0, end = even_part(f, tiles, t.tile_rows, row, by_tiles)
        self.tiles = f.sub(end, self.tile0)
        self.filter0, end = even_part(f, self.filter_count, self.panel, column, by_filters)
        self.filters = f.sub(end, self.filter0)
        self._count_register_tiles()
        self._clear_missing_tiles()
        self._sum()
        self._finish()
        f.close_loop(blocks)

    def _block_counts(self, tiles: str) -> tuple[str, str]:
        """How many blocks there are along tiles and along filters: see `winograd_blocks`."""
        f, most = self.f, self.f.dim(self.t.block_tiles)
        many = ceildiv(f, tiles, FEWEST_TILES)
        wide = f.smax(ceildiv(f, self.filter_count, f.dim(self.t.block_filters)), 1)
        few = f.smax(f.sub(2, many), 0)
        more = f.add(wide, f.mul(f.urem(wide, 2), few))
        panels = f.smax(ceildiv(f, self.filter_count, self.panel), 1)
        by_filters = f.smin(more, panels)
        fewest = f.smax(ceildiv(f, tiles, most), 1)
        even = f.smin(f.mul(2, ceildiv(f, tiles, f.mul(2, most))), many)
        odd = f.value(f"icmp ne i64 {f.urem(by_filters, 2)}, 0")
        by_tiles = f.value(f"select i1 {odd}, i64 {f.smax(fewest, even)}, i64 {fewest}")
        return by_tiles, by_filters

    def _count_register_tiles(self) -> None:
        """As few as can be, of which some have one row less where that is enough."""
        f, rows = self.f, self.t.tile_rows
        self.register_tiles = ceildiv(f, self.tiles, rows)
        missing = f.sub(f.mul(self.register_tiles, rows), self.tiles)
        self.low = f.smin(missing, self.register_tiles)
        self.tall = f.sub(self.register_tiles, self.low)
        bytes_of_steps = UNROLL * self.panel * self.lanes.itemsize
        self.step_ahead = f.udiv(bytes_of_steps, self.register_tiles)

    def _clear_missing_tiles(self) -> None:
        """Zero what the last register tile reads beyond the block: see
        `contraction._clear_missing_rows`."""
        f = self.f
        read = f.sub(f.mul(self.register_tiles, self.t.tile_rows), self.low)
        length = f.mul(f.sub(read, self.tiles), self.v_row)
        begin = f.offset(self.scratch["v"], f.mul(self.tiles, self.v_row))
        with self._loop(self.rule.points) as point:
            self._clear(f.offset(begin, f.mul(point, self.v_plane)), length)

    def _sum(self) -> None:
        f = self.f
        step = f.dim(self.t.depth)
        slices = f.open_loop(0, f.smax(self.channel_count, 1), step)
        depth = f.smin(f.sub(self.channel_count, slices.index), step)
        first = f.value(f"icmp eq i64 {slices.index}, 0")
        self._transform_input(slices.index, depth)
        with self._loop(self.filters, self.panel) as column:
            if self.c.panel:
                self._multiply_packed(depth, first, column, slices.index)
            else:
                self._transform_and_multiply(depth, first, column, slices.index)
        f.close_loop(slices)

    def _multiply_packed(self, depth: str, first: str, column: str, channel0: str) -> None:
        """With filters that a step of its own has transformed: see `kernel.Contraction`."""
        f = self.f
        row = self.panel * self.lanes.itemsize
        plane = f.mul(self.channel_count, row)
        panel = f.udiv(f.add(self.filter0, column), self.panel)
        u = f.offset(f.bases[1], f.mul(panel, f.mul(plane, self.rule.points)))
        u = f.offset(u, f.mul(channel0, row))
        self._multiply(depth, first, column, u, plane)

    def _transform_and_multiply(self, depth: str, first: str, column: str, channel0: str) -> None:
        begin = self._filters_at(channel0, column)
        self._transform_filters(begin, depth, column)
        following = self._following(begin, channel0, depth, column)

        def prefetch(point: str) -> None:
            self._prefetch(point, following, depth)

        self._multiply(depth, first, column, self.scratch["u"], self.u_plane, prefetch)

    def _multiply(
        self,
        depth: str,
        first: str,
        column: str,
        u: str,
        u_plane: str | int,
        prefetch: Callable[[str], None] | None = None,
    ) -> None:
        """The products of a panel of filters; what is wanted next is fetched meanwhile: the filters
        of the next point, or what `prefetch` asks for."""
        f, size = self.f, self.lanes.itemsize
        bytes_ahead = f.mul(depth, self.panel * size)
        self.ahead = f.udiv(bytes_ahead, self.register_tiles)
        m = f.offset(self.scratch["m"], f.mul(column, size))
        start = [("ptr", self.scratch["v"]), ("ptr", u), ("ptr", m)]
        points = f.open_loop(0, self.rule.points, 1, start)
        v, u, m = points.carried
        following = [f.offset(v, self.v_plane), f.offset(u, u_plane), f.offset(m, self.m_plane)]
        ahead = following[1]
        if prefetch:
            prefetch(points.index)
            ahead = ""
        v, m, ahead = self._multiply_rows(
            (v, u, m, ahead), self.t.tile_rows, self.tall, depth, first
        )
        self._multiply_rows((v, u, m, ahead), self.t.tile_rows - 1, self.low, depth, first)
        f.close_loop(points, following)

    def _multiply_rows(
        self, at: tuple[str, str, str, str], rows: int, count: str, depth: str, first: str
    ) -> tuple[str, str, str]:
        """`count` register tiles of so many rows each, from where V, M, and what is fetched
        meanwhile begin to where those of the next ones do."""
        f, size = self.f, self.lanes.itemsize
        v, u, m, ahead = at
        step = self.panel * size
        shape = Tile(
            rows,
            self.t.vectors,
            self.lanes.lanes,
            self.lanes.scalar,
            size,
            self.v_row,
            size,
            step,
            self.m_row,
            even=self.t.whole_channels,
        )
        carried = [p for p in (v, m, ahead) if p]
        tiles = f.open_loop(0, count, 1, [("ptr", p) for p in carried])
        v, m, *more = tiles.carried
        if more:
            shape = replace(shape, stream=(more[0], self.step_ahead))
        emit_tile(f, shape, v, u, m, depth, first)
        moved = (str(rows * self.v_row), str(rows * self.m_row), self.ahead)
        ended = [f.offset(p, n) for p, n in zip(tiles.carried, moved, strict=False)]
        v, m, *more = f.close_loop(tiles, ended)
        return v, m, more[0] if more else ""

    # ---- tiles

    @contextmanager
    def _each_tile(self) -> Iterator[tuple[str, Mapping[int, str]]]:
        """A loop over the tiles of the block: number, image and position of the first output."""
        f = self.f
        column, rest = f.urem(self.tile0, self.across), f.udiv(self.tile0, self.across)
        row, image = f.urem(rest, self.down), f.udiv(rest, self.down)
        loop = f.open_loop(0, self.tiles, 1, [("i64", image), ("i64", row), ("i64", column)])
        image, row, column = loop.carried
        side = self.rule.tile
        yield loop.index, {0: image, 1: f.mul(row, side), 2: f.mul(column, side)}
        column, carry = self._counted(column, "1", self.across)
        row, carry = self._counted(row, carry, self.down)
        f.close_loop(loop, [f.add(image, carry), row, column])

    def _counted(self, at: str, step: str, extent: str) -> tuple[str, str]:
        """A digit of an odometer one step later, and the carry."""
        f = self.f
        stepped = f.add(at, step)
        wraps = f.value(f"icmp sge i64 {stepped}, {extent}")
        after = f.value(f"select i1 {wraps}, i64 0, i64 {stepped}")
        return after, f.value(f"zext i1 {wraps} to i64")

    def _transform_input(self, channel0: str, depth: str) -> None:
        f, t, span = self.f, self.lanes, self.rule.span
        base = sum_records(f, self.x.origin(), self.x.part(f, {6: channel0}))
        with self._each_tile() as (tile, place):
            corner = sum_records(f, base, self.x.part(f, place))
            sources = [[self._input(corner, i, j) for j in range(span)] for i in range(span)]
            ahead = inputs_ahead(f, self.rule, self.x, corner, self.tiles)
            out = f.offset(self.scratch["v"], f.mul(tile, self.v_row))
            with self._loop(depth, t.lanes) as channel:
                at = f.mul(channel, t.itemsize)
                left = f.sub(depth, channel)
                for address in ahead:
                    f.prefetch(f.offset(address, at), 2)
                square = [
                    self._loads([f.offset(p, at) for p in row], left, self.t.whole_channels)
                    for row in sources
                ]
                made = input_transform(self.rule, self.code, square)
                self._store_points(made, f.offset(out, at), self.v_plane)

    def _input(self, corner: Record, i: int, j: int) -> str:
        """Where an element of an input tile lies; outside the input, where zeros lie."""
        f = self.f
        record = sum_records(f, corner, self.x.part(f, {4: str(i), 5: str(j)}))
        address, inside = self.x.locate(f, record)
        if not inside:
            return address
        return f.value(f"select i1 {inside}, ptr {address}, ptr {self.scratch['zeros']}")

    def _loads(self, addresses: list[str], left: str, whole: bool) -> list[str]:
        """Vectors of which `left` elements are there."""
        f, t = self.f, self.lanes
        if whole:
            return [f.value(f"load {t.vector}, ptr {p}, align {t.itemsize}") for p in addresses]
        mask = lanes_below(f, t, left)
        return [masked_load(f, t, p, mask) for p in addresses]

    def _store_points(self, square: list[list[str]], begin: str, plane: int) -> None:
        f, t = self.f, self.lanes
        for point, x in enumerate(x for row in square for x in row):
            at = f.offset(begin, point * plane)
            f.emit(f"store {t.vector} {x}, ptr {at}, align {t.bytes}")

    # ---- filters

    def _filters_at(self, channel0: str, column: str) -> str:
        """Where the filters of a panel begin."""
        part = self.w.part(self.f, {3: self.f.add(self.filter0, column), 6: channel0})
        return self.w.locate(self.f, self.w.origin(), part)[0]

    def _following(self, begin: str, channel0: str, depth: str, column: str) -> str:
        """Where the panel after this one begins: of the next slice, if this is the last."""
        f = self.f
        after = f.offset(begin, f.mul(self.w.strides[3], self.panel * self.lanes.itemsize))
        below = self._filters_at(f.add(channel0, depth), "0")
        last = f.value(f"icmp sge i64 {f.add(column, self.panel)}, {self.filters}")
        return f.value(f"select i1 {last}, ptr {below}, ptr {after}")

    def _prefetch(self, point: str, begin: str, depth: str) -> None:
        """Ask for the part of a panel that falls to a point: its short runs lie far apart, and no
        processor expects them."""
        f, t = self.f, self.lanes
        count, run, axis = depth, str(self.panel * t.itemsize), 6
        if self.t.transposed:
            count, run, axis = str(self.panel), f.mul(depth, t.itemsize), 3
        share = ceildiv(self.f, count, self.rule.points)
        first = f.mul(point, share)
        last = f.smin(f.add(first, share), count)
        runs = f.open_loop(first, last, 1)
        step = f.mul(self.w.strides[axis], t.itemsize)
        start = f.offset(begin, f.mul(runs.index, step))
        with self._loop(run, LINE) as line:
            for tap in self._taps():
                self._prefetch_line(f.offset(f.offset(start, tap), line))
        f.close_loop(runs)

    def _prefetch_line(self, at: str) -> None:
        """Ask for a cache line, to be read once more than the L1 cache can wait for."""
        args = (("ptr", at), ("i32", "0"), ("i32", "2"), ("i32", "1"))
        self.f.call("void", "llvm.prefetch.p0", *args)

    def _taps(self) -> list[str]:
        """Bytes from the first tap of a filter to each."""
        f = self.f
        down, across = (f.mul(self.w.strides[a], self.lanes.itemsize) for a in (4, 5))
        return [f.add(f.mul(down, i), f.mul(across, j)) for i in range(TAPS) for j in range(TAPS)]

    def _transform_filters(self, begin: str, depth: str, column: str) -> None:
        f, t = self.f, self.lanes
        if self.t.transposed:
            self._transform_transposed(begin, depth, column)
            return
        step = f.mul(self.w.strides[6], t.itemsize)
        left = f.sub(self.filters, column)
        moved = self._taps()
        channels = f.open_loop(0, depth, 1, [("ptr", begin), ("ptr", self.scratch["u"])])
        w, u = channels.carried
        with self._loop(self.panel, t.lanes) as part_:
            at = f.mul(part_, t.itemsize)
            whole = self.t.whole_filters
            taps = self._loads(
                [f.offset(f.offset(w, n), at) for n in moved], f.sub(left, part_), whole
            )
            self._filters(taps, f.offset(u, at))
        f.close_loop(channels, [f.offset(w, step), f.offset(u, self.panel * t.itemsize)])

    def _filters(self, taps: list[str], begin: str) -> None:
        """Transform a vector of filters."""
        square = [taps[TAPS * i : TAPS * (i + 1)] for i in range(TAPS)]
        made = filter_transform(self.rule, self.code, square)
        self._store_points(made, begin, self.u_plane)

    def _transform_transposed(self, begin: str, depth: str, column: str) -> None:
        """Weights that are contiguous along channels: a vector of channels of all filters of the
        panel is transposed at a time."""
        f, t = self.f, self.lanes
        row, tap_bytes = self.panel * t.itemsize, t.lanes * self.panel * t.itemsize
        chunks = f.open_loop(0, depth, t.lanes, [("ptr", begin), ("ptr", self.scratch["u"])])
        w, u = chunks.carried
        with self._loop(TAPS * TAPS) as tap, self._loop(self.panel, t.lanes) as part:
            place = self.w.part(f, {4: f.udiv(tap, TAPS), 5: f.urem(tap, TAPS)})[0]
            source = f.offset(w, f.mul(place, t.itemsize))
            last = f.sub(f.sub(self.filters, column), 1)
            rows = [f.smin(f.add(part, i), last) for i in range(t.lanes)]
            stride = f.mul(self.w.strides[3], t.itemsize)
            addresses = [f.offset(source, f.mul(i, stride)) for i in rows]
            found = self._loads(addresses, f.sub(depth, chunks.index), self.t.whole_channels)
            out = f.offset(self.scratch["taps"], f.mul(tap, tap_bytes))
            out = f.offset(out, f.mul(part, t.itemsize))
            for i, x in enumerate(transposed_vectors(f, t, found)):
                f.emit(f"store {t.vector} {x}, ptr {f.offset(out, i * row)}, align {t.bytes}")
        with self._loop(tap_bytes, t.bytes) as at:
            taps = [
                f.offset(f.offset(self.scratch["taps"], at), i * tap_bytes)
                for i in range(TAPS * TAPS)
            ]
            self._filters(self._loads(taps, "", True), f.offset(u, at))
        f.close_loop(chunks, [f.offset(w, t.bytes), f.offset(u, t.lanes * row)])

    # ---- outputs

    def _finish(self) -> None:
        f, t, side = self.f, self.lanes, self.rule.tile
        with self._each_tile() as (tile, place):
            m = f.offset(self.scratch["m"], f.mul(tile, self.m_row))
            with self._loop(self.filters, t.lanes) as column:
                fetch_outputs(f, self.rule, self.epilogue, place, f.add(self.filter0, column))
                at = f.mul(column, t.itemsize)
                points = [
                    f.offset(f.offset(m, at), n * self.m_plane) for n in range(self.rule.points)
                ]
                span = self.rule.span
                square = [
                    self._loads(points[span * i : span * (i + 1)], "", True) for i in range(span)
                ]
                made = output_transform(self.rule, self.code, square)
                self._store_points(made, f.offset(self.scratch["y"], at), self.y_row)
            rows = f.smin(f.sub(self.height, place[1]), side)
            columns = f.smin(f.sub(self.width, place[2]), side)
            with self._loop(rows) as i, self._loop(columns) as j:
                y = f.offset(self.scratch["y"], f.mul(f.add(f.mul(i, side), j), self.y_row))
                self._store({**place, 1: f.add(place[1], i), 2: f.add(place[2], j)}, y)

    def _store(self, place: Mapping[int, str], y: str) -> None:
        """The epilogue over the filters of one output position."""
        columns = Columns(self.filter0, self.filters, full=True, rest=True)
        self.epilogue.across(columns, place, y)


def _whole_lines(n: int) -> int:
    return -(-n // LINE) * LINE


def _odd_lines(n: int) -> int:
    """At least n bytes: an odd number of cache lines, so that planes do not share cache sets."""
    lines = -(-n // LINE)
    return (lines + 1 - lines % 2) * LINE

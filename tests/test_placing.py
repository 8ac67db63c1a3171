"""Placing blocks in the arena: live ones never overlap, whatever the sizes; little is wasted."""

from __future__ import annotations

import numpy as np
import pytest

import graphc as gx
from graphc import nn, train
from graphc.arena import ALIGNMENT, Slot, stack
from graphc.dims import atoms, evaluate
from graphc.passes.place import Block, Placing, keep_longer, most_alive, place
from graphc.plan import Plan


def random_blocks(rng: np.random.Generator, count: int, steps: int) -> list[Block]:
    blocks = []
    for _ in range(count):
        first = int(rng.integers(steps))
        length = int(rng.integers(1, 6)) if rng.random() < 0.7 else int(rng.integers(steps))
        size = int(rng.integers(0, 50)) * int(rng.choice([1, 64, 1000]))
        blocks.append(Block(size, first, min(steps - 1, first + length)))
    return blocks


def starts_of(placing: Placing, sizes: list[int]) -> tuple[list[int], int]:
    """Where each block starts for other sizes than it was placed for, and the arena's size."""
    number = {block: k for k, block in enumerate(placing.order)}
    slots = [Slot((), tuple(number[b] for b in placing.above[i])) for i in placing.order]
    starts, top = stack(slots, [sizes[i] for i in placing.order])
    return [starts[number[i]] for i in range(len(sizes))], top


@pytest.mark.parametrize("seed", range(30))
def test_live_blocks_never_overlap_whatever_their_sizes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    blocks = random_blocks(rng, int(rng.integers(1, 80)), int(rng.integers(1, 40)))
    placing = place(blocks)
    assert sorted(placing.order) == list(range(len(blocks)))
    for trial in range(5):
        sizes = [b.bytes if not trial else int(rng.integers(0, 10**6)) for b in blocks]
        starts, top = starts_of(placing, sizes)
        for i, a in enumerate(blocks):
            assert starts[i] + sizes[i] <= top
            for j, b in enumerate(blocks[:i]):
                if a.first <= b.last and b.first <= a.last and sizes[i] and sizes[j]:
                    apart = starts[i] + sizes[i] <= starts[j] or starts[j] + sizes[j] <= starts[i]
                    assert apart, (a, b)


def test_memory_is_kept_until_the_next_wait_only_where_it_costs_nothing() -> None:
    blocks = [Block(64, 0, 0), Block(128, 1, 1), Block(640, 3, 3), Block(64, 2, 2)]
    together = [-1, -1, -1, 0]  # steps 0 to 2 run together
    longer = [Block(64, 0, 2), Block(128, 1, 2), Block(640, 3, 3), Block(64, 2, 2)]
    assert keep_longer(blocks, together) == longer
    assert most_alive(longer) == most_alive(blocks)
    assert keep_longer(blocks, [-1, 0, 1, 2]) == blocks
    assert keep_longer(blocks[:2], together) == [Block(64, 0, 0), Block(128, 1, 2)]


def trained() -> dict[str, Plan]:
    """Plans of training steps that share memory in different ways."""
    plans = {}
    for name in ("convolutional", "residual", "recurrent"):
        with gx.Graph(seed=0).as_default():
            x = gx.placeholder("f32", ("batch", 16, 16, 3))
            labels = gx.placeholder("i64", ("batch",))
            h = x
            if name == "convolutional":
                for filters in (8, 16, 32):
                    h = nn.layers.max_pool2d(nn.layers.conv2d(h, filters, 3, padding=1), 2)
                    h = nn.relu(nn.layers.batch_normalization(h, True))
                h = nn.layers.flatten(h)
            elif name == "residual":
                h = nn.layers.dense(nn.layers.flatten(h), 40)
                for _ in range(12):
                    h = h + nn.layers.dense(h, 40, nn.relu)
            else:
                rows = gx.reshape(x, (-1, 16, 48))
                h = nn.layers.dense(rows[:, 0], 32)
                for t in range(16):
                    h = gx.tanh(nn.layers.dense(rows[:, t], 32) + nn.layers.dense(h, 32))
            logits = nn.layers.dense(h, 10)
            loss = gx.mean(nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
            step = train.Momentum(0.1, 0.9).minimize(loss)
            plans[name] = gx.explain([loss, step]).plan
    return plans


@pytest.mark.no_cover
def test_the_arena_is_hardly_larger_than_what_is_alive_at_once() -> None:
    for name, plan in trained().items():
        for batch, allowed in ((8, 1.2), (64, 1.02), (256, 1.2)):
            sizes = {a: batch for b in plan.buffers for a in atoms(b.bytes)}
            change = [0] * (len(plan.steps) + 2)
            spans: dict[int, list[int]] = {}
            for b in plan.buffers:
                span = spans.setdefault(b.slot, [b.first, b.last, evaluate(b.bytes, sizes)])
                span[1] = max(span[1], b.last)
            for first, last, size in spans.values():
                size = -(-size // ALIGNMENT) * ALIGNMENT
                change[first] += size
                change[last + 1] -= size
            least = int(np.cumsum(change).max())
            assert plan.arena_bytes(sizes) <= allowed * least, (name, batch)


@pytest.mark.no_cover
def test_the_formula_is_the_size_of_the_arena() -> None:
    for name, plan in trained().items():
        formula = plan.peak_formula()
        for batch in (1, 7, 64, 100, 1000):
            sizes = {a: batch for b in plan.buffers for a in atoms(b.bytes)}
            said = eval(formula, {"max": max, "floordiv": int.__floordiv__, "batch": batch})
            used = plan.arena_bytes(sizes)
            assert said <= used <= said + 1024, (name, batch)


def test_the_peak_in_a_few_words() -> None:
    for name, plan in trained().items():
        words = plan.peak_summary()
        assert "batch" in words and len(words) < 100, words
        units = {"MB": 10**6, "kB": 10**3, "bytes": 1, "max": max}
        for batch in (1, 16, 4096):
            sizes = {a: batch for b in plan.buffers for a in atoms(b.bytes)}
            said = eval(
                words.replace(" bytes", "").replace(" MB", "*MB").replace(" kB", "*kB"),
                {**units, "batch": batch},
            )
            assert 0.97 < said / plan.arena_bytes(sizes) < 1.01, (name, batch, words)


def test_a_peak_without_unknown_sizes_is_a_number() -> None:
    x = gx.placeholder("f32", (1000, 1000))
    plan = gx.explain(gx.sum(gx.matmul(gx.matmul(x, x), x))).plan
    assert plan.peak_formula() == str(plan.arena_bytes({}))
    assert plan.peak_summary() == "12 MB"  # x once more, in panels

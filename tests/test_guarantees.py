"""Promises about whole training runs: bits, resuming, compiles, and the memory plan."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import graphc as gx
from graphc.backends.llvm.executable import LLVMExecutable, compile_plan
from graphc.compiler import plan_cpu
from graphc.feeds import bind_sizes
from graphc.passes.resolve_state import resolve_state
from graphc.passes.specialise import specialise
from graphc.plan import Plan
from graphc.program import Program

Arrays = dict[str, np.ndarray[Any, Any]]

STEPS = 1000
BATCH = 16


class Net:
    """A LeNet for 12x12 images with dropout, trained by momentum with a decaying rate."""

    def __init__(self) -> None:
        self.graph = gx.Graph(seed=5)
        with self.graph.as_default():
            layers = gx.nn.layers
            self.images = gx.placeholder("f32", ("batch", 12, 12, 1), name="images")
            self.labels = gx.placeholder("i32", ("batch",), name="labels")
            h = layers.conv2d(self.images, 6, 5, padding="VALID", activation=gx.nn.relu, name="c1")
            h = layers.max_pool2d(h)
            h = layers.conv2d(h, 10, 3, padding="VALID", activation=gx.nn.relu, name="c2")
            h = layers.max_pool2d(h)
            h = layers.dense(layers.flatten(h), 24, gx.nn.relu, name="d1")
            self.logits = layers.dense(gx.nn.dropout(h, 0.2), 10, name="d2")
            self.plain_logits = layers.dense(h, 10, name="d3")
            losses = gx.nn.sparse_softmax_cross_entropy_with_logits(self.labels, self.logits)
            extra = gx.nn.sparse_softmax_cross_entropy_with_logits(self.labels, self.plain_logits)
            self.loss = gx.mean(losses) + gx.mean(extra)
            step = gx.train.get_or_create_global_step()
            rate = gx.train.exponential_decay(0.05, step, 400, 0.7)
            optimizer = gx.train.Momentum(rate, 0.9)
            self.train = optimizer.minimize(self.loss, global_step=step)
            self.init = gx.global_variables_initializer()

    def session(self, threads: int = 1) -> gx.Session:
        session = gx.Session(self.graph, threads=threads)
        session.run(self.init)
        return session

    def fit(self, session: gx.Session, first: int, last: int) -> None:
        for i in range(first, last):
            rng = np.random.default_rng(i)
            feed = {
                self.images: rng.standard_normal((BATCH, 12, 12, 1), dtype=np.float32),
                self.labels: rng.integers(0, 10, BATCH, dtype=np.int32),
            }
            session.run(self.train, feed)

    def weights(self, session: gx.Session) -> Arrays:
        variables = self.graph.get_collection(gx.GraphKeys.GLOBAL_VARIABLES)
        return {v.name: session.get_value(v) for v in variables}


@pytest.fixture(scope="module")
def trained() -> tuple[Net, Arrays]:
    """A net trained on one thread without interruption."""
    net = Net()
    session = net.session()
    net.fit(session, 0, STEPS)
    return net, net.weights(session)


def assert_same_bits(a: Arrays, b: Arrays) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].tobytes() == b[name].tobytes(), f"{name} differs"


def test_training_moves_every_weight(trained: tuple[Net, Arrays]) -> None:
    net, after = trained
    before = net.weights(net.session())
    for name, value in after.items():
        assert np.isfinite(value).all()
        assert value.tobytes() != before[name].tobytes(), f"{name} did not move"


@pytest.mark.parametrize("threads", [2, 4])
def test_threads_give_the_same_bits_as_one(trained: tuple[Net, Arrays], threads: int) -> None:
    net, alone = trained
    session = net.session(threads=threads)
    net.fit(session, 0, STEPS)
    assert_same_bits(net.weights(session), alone)


def test_a_resumed_run_gives_the_same_bits(trained: tuple[Net, Arrays], tmp_path: Path) -> None:
    net, whole = trained
    with net.graph.as_default():
        saver = gx.train.Saver()
    first = net.session()
    net.fit(first, 0, STEPS // 2)
    path = saver.save(first, tmp_path / "net", global_step=STEPS // 2)
    first.close()
    second = gx.Session(net.graph, threads=2)
    saver.restore(second, path)
    net.fit(second, STEPS // 2, STEPS)
    assert_same_bits(net.weights(second), whole)


def test_a_new_batch_size_compiles_nothing() -> None:
    net = Net()
    session = net.session()
    rng = np.random.default_rng(0)
    sizes = [3, *rng.integers(0, 300, 200), 0, 1, 2]
    for kind in ("inference", "training"):
        plans = []
        for n in sizes:
            images = rng.standard_normal((n, 12, 12, 1), dtype=np.float32)
            if kind == "inference":
                logits = session.run(net.plain_logits, {net.images: images})
                assert logits.shape == (n, 10)
            elif n:
                labels = rng.integers(0, 10, n)
                session.run([net.train, net.loss], {net.images: images, net.labels: labels})
            plans.append((gx.stats().plans, gx.stats().kernels))
        assert len(set(plans)) == 1, "a new size compiled something"


@dataclass(frozen=True)
class Planned:
    """A step of training, planned for every batch, and what is printed of it."""

    plan: Plan
    lowered: Program
    printed: str


@pytest.fixture(scope="module")
def planned() -> Planned:
    net = Net()
    program = resolve_state((net.loss,), [net.train], (net.images, net.labels))
    plan, lowered = plan_cpu(specialise(program, {}))
    printed = gx.explain([net.loss, net.train], [net.images, net.labels])
    return Planned(plan, lowered, str(printed))


@pytest.mark.parametrize("batch", [1, 2, 7, 64, 333])
def test_the_arena_is_as_large_as_the_plan_says(batch: int, planned: Planned) -> None:
    plan = planned.plan
    sizes = bind_sizes(planned.lowered.inputs, [(batch, 12, 12, 1), (batch,)])
    executable = compile_plan(plan)
    assert isinstance(executable, LLVMExecutable)
    inputs = [np.zeros((batch, 12, 12, 1), np.float32), np.zeros(batch, np.int32)]
    state = [np.zeros(tuple(v.type.shape or ()), v.type.dtype.numpy) for v in plan.variables]
    executable.run(inputs, state, sizes, 1)
    (bound,) = executable._bound.values()
    (context,) = bound.idle
    assert context._arena.nbytes == plan.arena_bytes(sizes) == executable.arena_bytes(sizes)
    assert f"peak: {plan.peak_formula()} bytes" in planned.printed

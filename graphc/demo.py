"""`graphc demo`: LeNet learns scikit-learn's handwritten digits, and shows how it was compiled.

The 1,797 images of 8x8 are split 80/20 by class with a fixed seed.  The network is Caffe's LeNet
with 'SAME' convolutions, since the images are small: conv 5x5x20, pool, conv 5x5x50, pool, 500
ReLU units, 10 classes.  Needs the packages of the `demo` extra: scikit-learn, matplotlib, rich.
Imports: session, explain, nn, train, text, demo_figures.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from graphc import nn, train
from graphc.demo_figures import draw_confusion, draw_filters, draw_loss
from graphc.dims import Sizes, atoms, evaluate
from graphc.explanation import explain
from graphc.graph import Graph
from graphc.node import Node, Tensor
from graphc.ops.arithmetic import astype, equal
from graphc.ops.reduce import argmax, mean
from graphc.ops.state import Variable, global_variables, global_variables_initializer, placeholder
from graphc.plan import Plan
from graphc.plan_text import plan_text
from graphc.session import Session
from graphc.text import print_program

Array = np.ndarray[Any, Any]

SIDE = 8
CLASSES = 10


@dataclass(frozen=True)
class Options:
    """What `graphc demo` takes on its command line."""

    epochs: int = 30
    steps: int | None = None  # stop after so many steps, whatever `epochs` says
    batch: int = 64
    learning_rate: float = 0.05
    threads: int | None = None
    seed: int = 0
    out: Path = Path("graphc-demo")
    device: str = "cpu"


# ---- data --------------------------------------------------------------------------------------


class Digits(NamedTuple):
    """Images [n,8,8,1] in [0,1] and their classes, for training and for testing."""

    images: Array
    labels: Array
    test_images: Array
    test_labels: Array


def load_digits() -> Digits:
    """scikit-learn's digits, 80/20, stratified, the same split every time."""
    from sklearn.datasets import load_digits as load
    from sklearn.model_selection import train_test_split

    data = load()
    images = (data.images / 16).astype(np.float32)[..., None]
    labels = data.target.astype(np.int64)
    x, test_x, y, test_y = train_test_split(
        images, labels, test_size=0.2, stratify=labels, random_state=0
    )
    return Digits(x, y, test_x, test_y)


def shifted(images: Array, rng: np.random.Generator) -> Array:
    """Each image moved by up to one pixel along each axis, zeros moving in."""
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    row, column = rng.integers(0, 3, (2, len(images), 1, 1))
    index = np.arange(SIDE)
    result: Array = padded[
        np.arange(len(images))[:, None, None], row + index[:, None], column + index
    ]
    return result


# ---- model -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LeNet:
    """The tensors of the model that the demo feeds and fetches."""

    images: Tensor
    labels: Tensor
    predicted: Tensor
    accuracy: Tensor
    loss: Tensor
    train_step: Node


def build_lenet(learning_rate: float, total_steps: int) -> LeNet:
    """LeNet and its training step, in the default graph."""
    layers, he_normal = nn.layers, nn.initializers.he_normal
    images = placeholder("f32", ("batch", SIDE, SIDE, 1), name="images")
    labels = placeholder("i64", ("batch",), name="labels")
    h = layers.conv2d(images, 20, 5, padding="SAME", kernel_initializer=he_normal(), name="conv1")
    h = layers.max_pool2d(h, 2)
    h = layers.conv2d(h, 50, 5, padding="SAME", kernel_initializer=he_normal(), name="conv2")
    h = layers.max_pool2d(h, 2)
    h = layers.dense(layers.flatten(h), 500, nn.relu, name="fc1")
    logits = layers.dense(h, CLASSES, name="fc2")
    loss = mean(nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
    predicted = argmax(logits, axis=-1)
    accuracy = mean(astype(equal(predicted, labels), "f32"))
    step = train.get_or_create_global_step()
    rate = train.cosine_decay(learning_rate, step, total_steps)
    train_step = train.Momentum(rate, 0.9).minimize(loss, step)
    return LeNet(images, labels, predicted, accuracy, loss, train_step)


# ---- training ----------------------------------------------------------------------------------


@dataclass
class Record:
    """What training measured."""

    losses: list[float] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)
    first_step: float = 0.0
    seconds: float = 0.0


Report = Callable[[int, float], None]


def fit(session: Session, model: LeNet, digits: Digits, options: Options, report: Report) -> Record:
    """Train; `report(step, loss)` is called after every step."""
    record = Record()
    rng = np.random.default_rng(options.seed)
    total = total_steps(digits, options)
    started = time.perf_counter()
    order = np.arange(0)
    for step in range(total):
        if len(order) < options.batch:
            order = rng.permutation(len(digits.images))
        chosen, order = order[: options.batch], order[options.batch :]
        images = shifted(digits.images[chosen], rng)
        feeds = {model.images: images, model.labels: digits.labels[chosen]}
        before = time.perf_counter()
        loss, _ = session.run([model.loss, model.train_step], feeds)
        record.step_seconds.append(time.perf_counter() - before)
        record.losses.append(float(loss))
        report(step, float(loss))
    record.seconds = time.perf_counter() - started
    record.first_step = record.step_seconds[0]
    return record


def total_steps(digits: Digits, options: Options) -> int:
    """How many steps the options ask for, at least one."""
    per_epoch = max(len(digits.images) // options.batch, 1)
    wanted = options.epochs * per_epoch if options.steps is None else options.steps
    return max(wanted, 1)


@contextlib.contextmanager
def progress_bar(total: int) -> Iterator[Report]:
    """A bar with the latest loss; without `rich`, nothing is drawn."""
    try:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
        )
    except ImportError:
        yield lambda step, loss: None
        return
    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns) as bar:
        task = bar.add_task("training", total=total, loss=float("nan"))
        yield lambda step, loss: bar.update(task, completed=step + 1, loss=loss)


# ---- what the compiler did ---------------------------------------------------------------------


@dataclass(frozen=True)
class Compilation:
    """The training step as it was written, as it was lowered, and its plan for one batch size."""

    before: str
    after: str
    plan: Plan
    sizes: Sizes

    @property
    def peak_bytes(self) -> int:
        return self.plan.peak_bytes(self.sizes)

    @property
    def unshared_bytes(self) -> int:
        """What the buffers would take if none shared memory."""
        return sum(evaluate(b.bytes, self.sizes) for b in self.plan.buffers)


def compilation(model: LeNet, batch: int) -> Compilation:
    """The stages of the training step: compiled once more, without machine code."""
    explained = explain([model.loss, model.train_step])
    sizes = dict.fromkeys(atoms(model.images.dims[0]), batch)
    return Compilation(
        print_program(explained.stages[0][1]),
        print_program(explained.stages[-1][1]),
        explained.plan,
        sizes,
    )


# ---- the demo ----------------------------------------------------------------------------------


def run(options: Options, write: Callable[[str], None] = print) -> dict[str, float]:
    """Train, test, write the files into `options.out`, and return the figures."""
    digits = load_digits()
    options.out.mkdir(parents=True, exist_ok=True)
    total = total_steps(digits, options)
    with Graph(seed=options.seed).as_default() as graph:
        model = build_lenet(options.learning_rate, total)
        write(f"graph: {len(graph.nodes)} nodes, {len(global_variables())} variables")
        with Session(graph, threads=options.threads, device=options.device) as session:
            session.run(global_variables_initializer())
            with progress_bar(total) as report:
                record = fit(session, model, digits, options, report)
            test = {model.images: digits.test_images, model.labels: digits.test_labels}
            accuracy, predicted = session.run([model.accuracy, model.predicted], test)
            train.Saver().save(session, str(options.out / "lenet"))
            kernels = graph.get_operation_by_name("conv1/kernel").outputs[0]
            assert isinstance(kernels, Variable)
            filters = session.get_value(kernels)
        compiled = compilation(model, options.batch)
        _write_texts(compiled, options.out, write)
    draw_loss(record.losses, options.out / "loss.png")
    draw_confusion(digits.test_labels, predicted, options.out / "confusion.png")
    draw_filters(filters, options.out / "filters.png")
    figures = _figures(record, float(accuracy), compiled)
    write(
        f"test accuracy {100 * accuracy:.2f} % after {len(record.losses)} steps in "
        f"{record.seconds:.2f} s: {figures['step_ms']:.2f} ms a step, "
        f"{figures['compile_seconds']:.2f} s to compile"
    )
    write(f"files in {options.out}: " + ", ".join(sorted(p.name for p in options.out.iterdir())))
    return figures


def _figures(record: Record, accuracy: float, compiled: Compilation) -> dict[str, float]:
    later = record.step_seconds[1:] or record.step_seconds
    step = float(np.median(later))
    return {
        "test_accuracy": round(accuracy, 6),
        "train_seconds": round(record.seconds, 4),
        "step_ms": round(1000 * step, 4),
        "compile_seconds": round(max(record.first_step - step, 0.0), 4),
        "peak_bytes": compiled.peak_bytes,
    }


def _write_texts(compiled: Compilation, out: Path, write: Callable[[str], None]) -> None:
    plan = plan_text(compiled.plan, compiled.sizes)
    (out / "graph-before.txt").write_text(compiled.before)
    (out / "graph-after.txt").write_text(compiled.after)
    (out / "plan.txt").write_text(plan)
    write("training step before the passes:\n" + _excerpt(compiled.before))
    write("after the passes:\n" + _excerpt(compiled.after))
    write(plan.rstrip())
    write(f"arena: {compiled.peak_bytes:,} bytes; {compiled.unshared_bytes:,} if no buffers shared")


def _excerpt(text: str, rows: int = 8) -> str:
    """The first and last rows of a long text."""
    lines = text.rstrip().splitlines()
    if len(lines) <= 2 * rows:
        return text.rstrip()
    left_out = f"  ... {len(lines) - 2 * rows} lines ..."
    return "\n".join([*lines[:rows], left_out, *lines[-rows:]])

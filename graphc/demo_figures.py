"""The demo's pictures: loss curve, confusion matrix, learned filters.

Drawn with matplotlib's Agg back end, which needs no display.  Imports: nothing of graphc.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def draw_loss(losses: Sequence[float], path: Path) -> None:
    """The loss of every step, and its running mean, on a logarithmic axis."""
    figure = _figure(7, 4)
    axes = figure.add_subplot()
    axes.semilogy(losses, linewidth=0.6, alpha=0.5, label="step")
    width = min(20, len(losses))
    smooth = np.convolve(losses, np.ones(width) / width, mode="valid")
    axes.semilogy(np.arange(width - 1, len(losses)), smooth, label=f"mean of {width}")
    axes.set_xlabel("step")
    axes.set_ylabel("cross-entropy")
    axes.legend()
    figure.savefig(path)


def confusion(labels: Array, predicted: Array, classes: int = 10) -> Array:
    """How many images of each class (rows) were taken for each class (columns)."""
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (labels, predicted), 1)
    return counts


def draw_confusion(labels: Array, predicted: Array, path: Path) -> None:
    """The confusion matrix, with its counts."""
    counts = confusion(labels, predicted)
    figure = _figure(5, 5)
    axes = figure.add_subplot()
    axes.imshow(counts, cmap="Blues")
    for row, column in np.argwhere(counts):
        dark = counts[row, column] > counts.max() / 2
        color = "white" if dark else "black"
        axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=color)
    axes.set_xticks(range(len(counts)))
    axes.set_yticks(range(len(counts)))
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    figure.savefig(path)


def draw_filters(kernel: Array, path: Path) -> None:
    """The filters [KH, KW, 1, O] of the first layer, side by side on one scale."""
    count = kernel.shape[-1]
    columns = min(count, 10)
    rows = -(-count // columns)
    limit = float(np.abs(kernel).max())
    figure = _figure(0.8 * columns, 0.8 * rows + 0.2)
    for i in range(count):
        axes = figure.add_subplot(rows, columns, i + 1)
        axes.imshow(kernel[:, :, 0, i], cmap="RdBu", vmin=-limit, vmax=limit)
        axes.set_axis_off()
    figure.savefig(path)

"""Convolutions of the classic networks beside PyTorch's (oneDNN), in one process, in turn.

    python benchmarks/convolutions.py                     every distinct layer, batch 1 and 8
    python benchmarks/convolutions.py resnet50 --batch 1 --only dw

Needs PyTorch.  All arrays are fed, weights too, so that nothing is prepared beforehand; PyTorch
gets channels_last tensors and returns such.  A row shows GFLOP/s of graphc and of PyTorch, medians
of calls that take turns, and PyTorch's time over graphc's; the last rows are geometric means.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch

import graphc as gx

KINDS = ("forward", "dx", "dw")


@dataclass(frozen=True)
class Layer:
    """A convolution of `rank` dimensions over `size`, padded by `pad` on both sides."""

    channels: int
    filters: int
    size: int
    window: int
    stride: int = 1
    pad: int = 0
    dilation: int = 1
    groups: int = 1
    rank: int = 2
    transposed: bool = False

    @property
    def out(self) -> int:
        if self.transposed:
            return (self.size - 1) * self.stride + self.window - 2 * self.pad
        reach = self.dilation * (self.window - 1) + 1
        return (self.size + 2 * self.pad - reach) // self.stride + 1

    def flop(self, batch: int) -> float:
        """Of one of the three products, padding counted."""
        places = (self.size if self.transposed else self.out) ** self.rank
        taps = self.window**self.rank
        return 2.0 * batch * places * taps * self.channels * self.filters / self.groups

    def __str__(self) -> str:
        text = f"{self.channels}->{self.filters} {self.window}x{self.window} @{self.size}"
        for name in ("stride", "dilation", "groups"):
            if getattr(self, name) != 1:
                text += f" {name[0]}{getattr(self, name)}"
        text += " 3-D" if self.rank == 3 else ""
        return text + (" transposed" if self.transposed else "")


def _resnet50() -> Iterable[Layer]:
    yield Layer(3, 64, 224, 7, 2, 3)
    size, channels = 56, 64
    for stage, width in enumerate((64, 128, 256, 512)):
        stride = 2 if stage else 1
        yield Layer(channels, width, size, 1)
        yield Layer(channels, 4 * width, size, 1, stride)
        yield Layer(width, width, size, 3, stride, 1)
        size, channels = size // stride, 4 * width
        yield Layer(width, channels, size, 1)
        yield Layer(channels, width, size, 1)
        yield Layer(width, width, size, 3, 1, 1)


def _vgg16() -> Iterable[Layer]:
    channels, size = 3, 224
    for filters in (64, 128, 256, 512, 512):
        yield Layer(channels, filters, size, 3, 1, 1)
        yield Layer(filters, filters, size, 3, 1, 1)
        channels, size = filters, size // 2


def _googlenet() -> Iterable[Layer]:
    yield from (Layer(3, 64, 224, 7, 2, 3), Layer(64, 64, 56, 1), Layer(64, 192, 56, 3, 1, 1))
    blocks = (
        (28, 192, 64, 96, 128, 16, 32, 32),
        (28, 256, 128, 128, 192, 32, 96, 64),
        (14, 480, 192, 96, 208, 16, 48, 64),
        (14, 512, 160, 112, 224, 24, 64, 64),
        (14, 512, 112, 144, 288, 32, 64, 64),
        (14, 528, 256, 160, 320, 32, 128, 128),
        (7, 832, 384, 192, 384, 48, 128, 128),
    )
    for size, channels, one, three_in, three, five_in, five, pooled in blocks:
        for filters in (one, three_in, five_in, pooled):
            yield Layer(channels, filters, size, 1)
        yield Layer(three_in, three, size, 3, 1, 1)
        yield Layer(five_in, five, size, 5, 1, 2)


SETS: dict[str, tuple[Layer, ...]] = {
    "alexnet": (
        Layer(3, 64, 227, 11, 4, 2),
        Layer(64, 192, 27, 5, 1, 2),
        Layer(192, 384, 13, 3, 1, 1),
        Layer(384, 256, 13, 3, 1, 1),
        Layer(256, 256, 13, 3, 1, 1),
    ),
    "vgg16": tuple(_vgg16()),
    "googlenet": tuple(_googlenet()),
    "resnet50": tuple(_resnet50()),
    "cifar": (
        Layer(3, 16, 32, 3, 1, 1),
        Layer(16, 16, 32, 3, 1, 1),
        Layer(16, 32, 32, 3, 2, 1),
        Layer(32, 32, 16, 3, 1, 1),
        Layer(32, 64, 16, 3, 2, 1),
        Layer(64, 64, 8, 3, 1, 1),
    ),
    "others": (
        Layer(512, 256, 8, 4, 2, 1, transposed=True),
        Layer(256, 128, 16, 4, 2, 1, transposed=True),
        Layer(128, 64, 32, 4, 2, 1, transposed=True),
        Layer(128, 64, 28, 2, 2, 0, transposed=True),
        Layer(256, 256, 28, 3, 1, 2, dilation=2),
        Layer(256, 256, 28, 3, 1, 4, dilation=4),
        Layer(96, 256, 27, 5, 1, 2, groups=2),
        Layer(128, 128, 56, 3, 1, 1, groups=32),
        Layer(256, 256, 28, 3, 1, 1, groups=32),
        Layer(512, 512, 14, 3, 1, 1, groups=32),
        Layer(32, 32, 112, 3, 1, 1, groups=32),
        Layer(128, 128, 56, 3, 1, 1, groups=128),
        Layer(128, 128, 56, 3, 2, 1, groups=128),
        Layer(512, 512, 14, 3, 1, 1, groups=512),
        Layer(120, 120, 28, 5, 1, 2, groups=120),
        Layer(64, 128, 28, 3, 1, 1, groups=64),
        Layer(32, 32, 16, 3, 1, 1, rank=3),
        Layer(64, 64, 8, 3, 2, 1, rank=3),
    ),
}


def _graphc(
    session: gx.Session, layer: Layer, arrays: dict[str, np.ndarray], kind: str
) -> Callable[[], object]:
    place = {name: gx.placeholder("f32", a.shape, name=name) for name, a in arrays.items()}
    x, w, dy = place["x"], place["w"], place["dy"]
    pad = [(layer.pad, layer.pad)] * layer.rank
    conv = gx.nn.conv_transpose if layer.transposed else gx.nn.conv
    y = conv(x, w, layer.stride, pad, layer.dilation, layer.groups)
    if kind == "forward":
        wanted, inputs = y, ("x", "w")
    else:
        (wanted,) = gx.gradients(y, [x if kind == "dx" else w], grad_ys=[dy])
        inputs = ("w", "dy") if kind == "dx" else ("x", "dy")
    call = session.make_callable(wanted, [place[name] for name in inputs])
    values = [arrays[name] for name in inputs]
    return lambda: call(*values)


def _torch(layer: Layer, arrays: dict[str, np.ndarray], kind: str) -> Callable[[], object]:
    last = torch.channels_last if layer.rank == 2 else torch.channels_last_3d
    axes = (0, layer.rank + 1, *range(1, layer.rank + 1))
    turned = (*range(layer.rank, layer.rank + 2)[::-1], *range(layer.rank))
    x = torch.from_numpy(arrays["x"]).permute(axes)
    dy = torch.from_numpy(arrays["dy"]).permute(axes)
    w = torch.from_numpy(arrays["w"]).permute(turned).contiguous(memory_format=last)
    r = layer.rank
    rest = ([layer.stride] * r, [layer.pad] * r, [layer.dilation] * r)
    rest = (*rest, layer.transposed, [0] * r, layer.groups)
    if kind == "forward":
        return lambda: torch.convolution(x, w, None, *rest)
    mask = [kind == "dx", kind == "dw", False]
    backward = torch.ops.aten.convolution_backward
    return lambda: backward(dy, x, w, None, *rest, mask)


def _arrays(layer: Layer, batch: int) -> dict[str, np.ndarray]:
    rng = np.random.RandomState(0)
    window = (layer.window,) * layer.rank
    ends = (layer.filters, layer.channels) if layer.transposed else (layer.channels, layer.filters)
    shapes = {
        "x": (batch, *(layer.size,) * layer.rank, layer.channels),
        "w": (*window, ends[0] // layer.groups, ends[1]),
        "dy": (batch, *(layer.out,) * layer.rank, layer.filters),
    }
    return {name: rng.randn(*shape).astype(np.float32) for name, shape in shapes.items()}


def _check(layer: Layer, kind: str, ours: np.ndarray, theirs: torch.Tensor) -> None:
    r = layer.rank
    axes = (*range(2, r + 2), 1, 0) if kind == "dw" else (0, *range(2, r + 2), 1)
    expected = theirs.permute(axes).numpy()
    error = np.linalg.norm(ours - expected) / np.linalg.norm(expected)
    assert error < 1e-4, f"{layer} {kind}: relative difference {error:.1e}"


def compare(layer: Layer, batch: int, kind: str, threads: int, secs: float) -> tuple[float, float]:
    """Median seconds of graphc and of PyTorch."""
    arrays = _arrays(layer, batch)
    with gx.Graph().as_default() as graph, gx.Session(graph, threads=threads) as session:
        ours = _graphc(session, layer, arrays, kind)
        theirs = _torch(layer, arrays, kind)
        with torch.no_grad():
            result = theirs()
            result = result if kind == "forward" else result[0 if kind == "dx" else 1]
            _check(layer, kind, np.asarray(ours()), result)
            for _ in range(10):  # the first calls are slower: see docs/performance.md
                ours()
            times: tuple[list[float], list[float]] = ([], [])
            began = time.perf_counter()
            while len(times[0]) < 5 or time.perf_counter() - began < secs:
                for call, taken in zip((ours, theirs), times, strict=True):
                    before = time.perf_counter()
                    call()
                    taken.append(time.perf_counter() - before)
    return statistics.median(times[0]), statistics.median(times[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("sets", nargs="*", default=[], metavar="SET", help=" ".join(SETS))
    parser.add_argument("--batch", type=int, nargs="*", default=[1, 8])
    parser.add_argument("--only", choices=KINDS, help="one of the three products")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--secs", type=float, default=0.3, help="how long to measure a case")
    parser.add_argument("--match", default="", help="only layers whose description contains this")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    kinds = (arguments.only,) if arguments.only else KINDS
    ratios: dict[str, list[float]] = {kind: [] for kind in kinds}
    print(f"{'':46s}" + "".join(f"{kind + ' GFLOP/s':>20s} ratio" for kind in kinds))
    for name in arguments.sets or SETS:
        for layer in dict.fromkeys(SETS[name]):
            if arguments.match not in str(layer):
                continue
            for batch in arguments.batch:
                row = f"{name:9s} batch {batch}  {layer!s:28s}"
                for kind in kinds:
                    if kind == "dx" and layer.channels == 3:
                        row += f"{'-':>20s} {'-':>5s}"
                        continue
                    ours, theirs = compare(layer, batch, kind, arguments.threads, arguments.secs)
                    speeds = [layer.flop(batch) / s / 1e9 for s in (ours, theirs)]
                    ratios[kind].append(theirs / ours)
                    row += f"{speeds[0]:10.1f}{speeds[1]:10.1f} {theirs / ours:5.2f}"
                print(row, flush=True)
    for kind, found in ratios.items():
        mean = math.exp(statistics.fmean(map(math.log, found)))
        print(f"{kind}: geometric mean {mean:.2f}, worst {min(found):.2f}, of {len(found)} cases")


if __name__ == "__main__":
    main()

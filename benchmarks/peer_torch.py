"""A workload of workloads.py in PyTorch: `python benchmarks/peer_torch.py WORKLOAD [--mode MODE]`.

Modes: eager; channels_last; malloc, eager with glibc told to keep large blocks, which spares page
faults; compile, through inductor.  Prints one line of JSON, as run.py does.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

from timing import measure, peak_rss_mb, pin_if_single

MODES = ("eager", "channels_last", "malloc", "compile")

_KEEP = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 32),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 34),
    "MALLOC_TOP_PAD_": str(1 << 26),
}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("workload", nargs="+")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--precision", choices=("f32", "tf32", "bf16"), default="f32")
    parser.add_argument("--mode", choices=MODES, default="eager")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--secs", type=float, default=4.0)
    return parser.parse_args()


if __name__ == "__main__":
    ARGUMENTS = _arguments()
    pin_if_single(ARGUMENTS.threads)
    os.environ.setdefault("OMP_NUM_THREADS", str(ARGUMENTS.threads))
    if ARGUMENTS.mode == "malloc" and "MALLOC_TOP_PAD_" not in os.environ:
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **_KEEP})

import numpy as np  # noqa: E402
import torch  # noqa: E402
from peer_torch_networks import NETWORKS, AttentionBlock  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

Call = Callable[[], object]


class Peer:
    """What differs between the modes."""

    def __init__(self, mode: str, device: str = "cpu", precision: str = "f32") -> None:
        self.mode = mode
        self.device = device
        self.rng = np.random.RandomState(0)
        self.rounded = precision == "bf16"
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        torch.backends.cudnn.allow_tf32 = precision == "tf32"

    def precision(self) -> AbstractContextManager:
        """Inside, products are rounded to what was asked for."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self.rounded)

    def finish(self) -> None:
        """Wait for the device."""
        if self.device != "cpu":
            torch.cuda.synchronize()

    def compiled(self, f: Callable) -> Callable:
        return torch.compile(f) if self.mode == "compile" else f

    def array(self, *shape: int) -> np.ndarray:
        return self.rng.randn(*shape).astype(np.float32)

    def tensor(self, *shape: int) -> torch.Tensor:
        return self.placed(torch.from_numpy(self.array(*shape)))

    def placed(self, x: torch.Tensor) -> torch.Tensor:
        x = x.to(self.device)
        if self.mode == "channels_last" and x.dim() == 4:
            return x.contiguous(memory_format=torch.channels_last)
        return x

    def module(self, module: nn.Module) -> nn.Module:
        module = module.to(self.device)
        if self.mode == "channels_last":
            return module.to(memory_format=torch.channels_last)
        return module

    def call(self, f: Callable, *inputs: torch.Tensor) -> Call:
        """f without gradients."""
        compiled = self.compiled(f)

        def run() -> object:
            with torch.inference_mode(), self.precision():
                found = compiled(*inputs)
            self.finish()
            return found

        return run

    def training(
        self, module: nn.Module, feeds: tuple, optimizer: torch.optim.Optimizer, loss: Callable
    ) -> Call:
        """A whole step from NumPy arrays to a Python loss."""
        forward = self.compiled(lambda *feeds: loss(module(feeds[0]), *feeds[1:]))
        update = self.compiled(optimizer.step)

        def run() -> float:
            tensors = [self.placed(torch.from_numpy(a)) for a in feeds]
            optimizer.zero_grad(set_to_none=True)
            with self.precision():
                value = forward(*tensors)
            value.backward()
            update()
            return float(value)

        return run


def _chain(p: Peer, n: int) -> Call:
    f = lambda a, b, c, d, e: torch.tanh(a * b + c) * d - torch.exp(-e * e)  # noqa: E731
    return p.call(f, *(p.tensor(n) for _ in range(5)))


def _call100(p: Peer) -> Call:
    x = p.array(8)
    f = p.compiled(lambda x: x + 1)
    return lambda: f(torch.from_numpy(x).to(p.device)).cpu().numpy()


def _kernels20(p: Peer) -> Call:
    x, w = np.eye(8, dtype=np.float32), p.tensor(8, 8)

    def twenty(y: torch.Tensor) -> torch.Tensor:
        for _ in range(20):
            y = y @ w * 0.25
        return y

    f = p.compiled(twenty)
    return lambda: f(torch.from_numpy(x).to(p.device)).cpu().numpy()


def _sums(p: Peer, n: int, axis: int) -> Call:
    return p.call(lambda x: x.sum(axis), p.tensor(n, 4096))


def _xent(p: Peer) -> Call:
    x = p.tensor(4096, 1000).requires_grad_()
    labels = p.placed(torch.from_numpy(p.rng.randint(0, 1000, 4096)))
    f = p.compiled(functional.cross_entropy)

    def run() -> None:
        torch.autograd.grad(f(x, labels), x)
        p.finish()

    return run


def _layernorm(p: Peer) -> Call:
    x, scale, offset = p.tensor(4096, 1024), p.tensor(1024), p.tensor(1024)
    return p.call(lambda x: functional.layer_norm(x, (1024,), scale, offset), x)


def _cs231n(p: Peer) -> Call:
    module = nn.Sequential(
        nn.Linear(1000, 100, bias=False), nn.ReLU(), nn.Linear(100, 1000, bias=False)
    )
    module = p.module(module)
    feeds = (p.array(64, 1000), p.array(64, 1000))
    optimizer = torch.optim.SGD(module.parameters(), 1e-5)
    return p.training(module, feeds, optimizer, lambda y, t: ((y - t) ** 2).sum(1).mean())


def _lstm(p: Peer) -> Call:
    module = p.module(nn.LSTM(256, 256))
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    return p.training(module, (p.array(50, 32, 256),), optimizer, lambda y: (y[0] ** 2).mean())


def _transformer(p: Peer) -> Call:
    module = p.module(AttentionBlock())
    x = p.array(8, 128, 256)
    f = p.compiled(lambda x: (module(x) ** 2).mean())

    def run() -> object:
        inputs = torch.from_numpy(x).to(p.device).requires_grad_()
        found = torch.autograd.grad(f(inputs), [inputs, *module.parameters()])
        p.finish()
        return found

    return run


_FIXED: dict[str, Callable[[Peer], Call]] = {
    "call": lambda p: p.call(lambda x: x + 1, p.tensor(8)),
    "call100": _call100,
    "kernels20": _kernels20,
    "chain_big": lambda p: _chain(p, 10_000_000),
    "chain_small": lambda p: _chain(p, 65_536),
    "xent": _xent,
    "layernorm": _layernorm,
    "cs231n": _cs231n,
    "lstm_train": _lstm,
    "transformer_fb": _transformer,
}


_SIZED: dict[str, Callable[[Peer, int], Call]] = {
    "gemm": lambda p, n: p.call(torch.mm, p.tensor(n, n), p.tensor(n, n)),
    "product": lambda p, n: p.call(torch.mm, p.tensor(n, n), p.tensor(n, n)),
    "chain": _chain,
    "column_sums": partial(_sums, axis=0),
    "row_sums": partial(_sums, axis=1),
}


def build(p: Peer, workload: str) -> Call:
    """What to time."""
    if workload in _FIXED:
        return _FIXED[workload](p)
    if sized := re.fullmatch(r"(gemm|product|chain|column_sums|row_sums)(\d+)", workload):
        n = int(sized[2])
        return _SIZED[sized[1]](p, n)
    found = re.fullmatch(r"(\w+?)(?:_(inf|train)(\d+))?", workload)
    name, kind, batch = found.groups() if found else (workload, None, None)
    if name not in NETWORKS:
        raise SystemExit(f"no workload {workload!r} in PyTorch")
    make, shape, classes = NETWORKS[name]
    module = p.module(make())
    size = int(batch) if batch else {"mlp": 128, "lenet": 64}[name]
    if kind == "inf":
        return p.call(module.eval(), p.tensor(size, *shape))
    parameters = list(module.parameters())
    adam = name == "mlp"
    optimizer = (
        torch.optim.Adam(parameters, 1e-3) if adam else torch.optim.SGD(parameters, 1e-4, 0.9)
    )
    feeds = (p.array(size, *shape), p.rng.randint(0, classes, size))
    return p.training(module, feeds, optimizer, functional.cross_entropy)


def main() -> None:
    a = ARGUMENTS
    torch.set_num_threads(a.threads)
    torch.manual_seed(0)
    for workload in a.workload:
        found = measure(build(Peer(a.mode, a.device, a.precision), workload), a.secs)
        result = {"peer": "torch", "workload": workload, "threads": a.threads, "mode": a.mode}
        rest = {"version": torch.__version__, "peak_rss_mb": round(peak_rss_mb(), 1)}
        print(json.dumps({**result, **found, "precision": a.precision, **rest}), flush=True)


if __name__ == "__main__":
    main()

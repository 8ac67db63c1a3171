"""The inference workloads as ONNX files for peer_onnx.py: needs PyTorch and onnx.

python benchmarks/peer_onnx_export.py FOLDER [WORKLOAD ...]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from peer_torch_networks import NETWORKS
from torch import nn
from torch.nn import functional

INFERRED = (
    *(("alexnet", 1), ("alexnet", 16), ("alexnetcaffe", 1), ("alexnetcaffe", 16)),
    *(("vgg16", 1), ("googlenet", 1), ("resnet50", 1), ("resnet50", 16)),
)


class _Function(nn.Module):
    def __init__(self, f: Callable) -> None:
        super().__init__()
        self.f = f

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.f(*inputs)


def _workloads() -> Iterator[tuple[str, Callable[[], nn.Module], tuple[torch.Tensor, ...]]]:
    yield "call100", lambda: _Function(lambda x: x + 1), (torch.zeros(8),)

    def chain() -> nn.Module:
        return _Function(lambda a, b, c, d, e: torch.tanh(a * b + c) * d - torch.exp(-e * e))

    yield "chain_big", chain, (torch.zeros(10_000_000),) * 5
    yield "chain_small", chain, (torch.zeros(65_536),) * 5
    scale, offset = torch.randn(1024), torch.randn(1024)
    norm = _Function(lambda x: functional.layer_norm(x, (1024,), scale, offset))
    yield "layernorm", lambda: norm, (torch.zeros(4096, 1024),)
    for n in (128, 256, 512, 1024, 2048):
        yield f"gemm{n}", lambda: _Function(torch.mm), (torch.zeros(n, n), torch.zeros(n, n))
    for name, batch in INFERRED:
        make, shape, _ = NETWORKS[name]
        yield f"{name}_inf{batch}", make, (torch.zeros(batch, *shape),)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("workloads", nargs="*")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    for name, make, inputs in _workloads():
        if arguments.workloads and name not in arguments.workloads:
            continue
        names = [f"x{i}" for i in range(len(inputs))]
        path = arguments.folder / f"{name}.onnx"
        torch.onnx.export(
            make().eval(), inputs, path, input_names=names, opset_version=17, dynamo=False
        )
        print(path, flush=True)


if __name__ == "__main__":
    main()

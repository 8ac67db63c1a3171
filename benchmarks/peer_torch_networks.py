"""The networks of networks.py in PyTorch, for peer_torch.py and export to ONNX."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.nn import functional

Module = nn.Module


def mlp() -> Module:
    """784-512-512-10 with ReLU."""
    return nn.Sequential(
        *(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
    )


def _classifier(features: int) -> Iterator[Module]:
    yield nn.Flatten()
    for inputs in (features, 4096):
        yield from (nn.Linear(inputs, 4096), nn.ReLU())
    yield nn.Linear(4096, 1000)


def lenet() -> Module:
    """Caffe's LeNet."""
    features = (nn.Conv2d(1, 20, 5), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.MaxPool2d(2))
    return nn.Sequential(
        *features, nn.Flatten(), nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10)
    )


def _conv(inputs: int, filters: int, window: int, pad: int = 0, **rest: int) -> Iterator[Module]:
    yield nn.Conv2d(inputs, filters, window, padding=pad, **rest)
    yield nn.ReLU()


def alexnet() -> Module:
    """AlexNet in one column without normalization."""
    layers = [*_conv(3, 64, 11, 2, stride=4), nn.MaxPool2d(3, 2)]
    layers += [*_conv(64, 192, 5, 2), nn.MaxPool2d(3, 2)]
    for inputs, filters in ((192, 384), (384, 256), (256, 256)):
        layers += _conv(inputs, filters, 3, 1)
    return nn.Sequential(*layers, nn.MaxPool2d(3, 2), *_classifier(9216))


def alexnet_caffe() -> Module:
    """AlexNet in two columns with local response normalization."""
    norm = nn.LocalResponseNorm(5, 1e-4, 0.75)
    layers = [*_conv(3, 96, 11, stride=4), norm, nn.MaxPool2d(3, 2)]
    layers += [*_conv(96, 256, 5, 2, groups=2), norm, nn.MaxPool2d(3, 2)]
    for inputs, filters, columns in ((256, 384, 1), (384, 384, 2), (384, 256, 2)):
        layers += _conv(inputs, filters, 3, 1, groups=columns)
    return nn.Sequential(*layers, nn.MaxPool2d(3, 2), *_classifier(9216))


def vgg16() -> Module:
    """VGG-16, configuration D."""
    layers: list[Module] = []
    inputs = 3
    for filters, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(count):
            layers += _conv(inputs, filters, 3, 1)
            inputs = filters
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, *_classifier(25088))


class _Inception(nn.Module):
    def __init__(self, inputs: int, *widths: int) -> None:
        super().__init__()
        one, three_in, three, five_in, five, pooled = widths
        self.branches = nn.ModuleList(
            [
                nn.Sequential(*_conv(inputs, one, 1)),
                nn.Sequential(*_conv(inputs, three_in, 1), *_conv(three_in, three, 3, 1)),
                nn.Sequential(*_conv(inputs, five_in, 1), *_conv(five_in, five, 5, 2)),
                nn.Sequential(nn.MaxPool2d(3, 1, 1), *_conv(inputs, pooled, 1)),
            ]
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


def googlenet() -> Module:
    """GoogLeNet's main tower."""
    layers = [*_conv(3, 64, 7, 3, stride=2), nn.MaxPool2d(3, 2, 1)]
    layers += [*_conv(64, 64, 1), *_conv(64, 192, 3, 1), nn.MaxPool2d(3, 2, 1)]
    blocks = (
        (192, 64, 96, 128, 16, 32, 32),
        (256, 128, 128, 192, 32, 96, 64),
        (),
        (480, 192, 96, 208, 16, 48, 64),
        (512, 160, 112, 224, 24, 64, 64),
        (512, 128, 128, 256, 24, 64, 64),
        (512, 112, 144, 288, 32, 64, 64),
        (528, 256, 160, 320, 32, 128, 128),
        (),
        (832, 256, 160, 320, 32, 128, 128),
        (832, 384, 192, 384, 48, 128, 128),
    )
    layers += [_Inception(*widths) if widths else nn.MaxPool2d(3, 2, 1) for widths in blocks]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1024, 1000))


def _conv_norm(inputs: int, filters: int, window: int, stride: int = 1) -> Module:
    conv = nn.Conv2d(inputs, filters, window, stride, window // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(filters))


class _Residual(nn.Module):
    """relu(inner(x) + skip(x))."""

    def __init__(self, inner: Module, skip: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.inner, self.skip = inner, skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.inner(x) + self.skip(x))


def resnet50() -> Module:
    """ResNet-50, the stride in the 3 x 3 convolutions."""
    layers = [_conv_norm(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    inputs = 64
    for stage, count in enumerate((3, 4, 6, 3)):
        width = 64 << stage
        for block in range(count):
            stride = 2 if stage and not block else 1
            inner = nn.Sequential(
                *(_conv_norm(inputs, width, 1), nn.ReLU()),
                *(_conv_norm(width, width, 3, stride), nn.ReLU()),
                _conv_norm(width, 4 * width, 1),
            )
            skip = nn.Identity() if block else _conv_norm(inputs, 4 * width, 1, stride)
            layers.append(_Residual(inner, skip))
            inputs = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, 1000))


def _halved(x: torch.Tensor) -> torch.Tensor:
    """The shortcut of option A: every other pixel, channels padded to twice their number."""
    return functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, x.shape[1]))


def resnet_cifar(depth: int) -> Module:
    """The ResNet of 6 n + 2 layers for 32 x 32 images."""
    layers = [_conv_norm(3, 16, 3), nn.ReLU()]
    inputs = 16
    for stage in range(3):
        width = 16 << stage
        for block in range((depth - 2) // 6):
            stride = 2 if stage and not block else 1
            inner = nn.Sequential(
                _conv_norm(inputs, width, 3, stride), nn.ReLU(), _conv_norm(width, width, 3)
            )
            layers.append(_Residual(inner, _halved if stride == 2 else nn.Identity()))
            inputs = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


class AttentionBlock(nn.Module):
    """A pre-norm self-attention block with its feed-forward layer."""

    def __init__(self, width: int = 256, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.project = nn.Linear(width, 3 * width)
        self.mix = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        shape = (batch, length, 3, self.heads, width // self.heads)
        q, k, v = self.project(self.norms[0](x)).view(shape).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        x = x + self.mix(mixed.transpose(1, 2).reshape(batch, length, width))
        hidden = functional.gelu(self.up(self.norms[1](x)), approximate="tanh")
        return x + self.down(hidden)


NETWORKS: dict[str, tuple[Callable[[], Module], tuple[int, ...], int]] = {
    "mlp": (mlp, (784,), 10),
    "lenet": (lenet, (1, 28, 28), 10),
    "alexnet": (alexnet, (3, 227, 227), 1000),
    "alexnetcaffe": (alexnet_caffe, (3, 227, 227), 1000),
    "vgg16": (vgg16, (3, 224, 224), 1000),
    "googlenet": (googlenet, (3, 224, 224), 1000),
    "resnet50": (resnet50, (3, 224, 224), 1000),
    "resnet20": (lambda: resnet_cifar(20), (3, 32, 32), 10),
    "resnet110": (lambda: resnet_cifar(110), (3, 32, 32), 10),
}
"""Constructor, shape of a sample, classes."""

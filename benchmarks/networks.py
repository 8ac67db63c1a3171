"""The networks that the benchmarks train: each function builds one step on the default graph.

Images are NHWC.  A `Network` is a loss, the updates of one training step, and feeds for a batch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import graphc as gx
from graphc import nn, train

layers = nn.layers


@dataclass
class Network:
    """A loss, the prediction it judges, and the placeholders of both."""

    x: gx.Tensor
    labels: gx.Tensor
    output: gx.Tensor
    loss: gx.Tensor
    classes: int

    def feeds(self, batch: int, seed: int = 0) -> dict[gx.Tensor, np.ndarray]:
        """A batch of noise with labels."""
        rng = np.random.RandomState(seed)
        shape = (batch, *self.x.shape[1:])
        return {
            self.x: rng.randn(*shape).astype(np.float32),
            self.labels: rng.randint(0, self.classes, batch),
        }

    def step(self, optimizer: train.Optimizer | None = None) -> Any:
        """One step of training, the moving statistics included."""
        update = (optimizer or train.Momentum(1e-3, 0.9)).minimize(self.loss)
        statistics = gx.get_collection(gx.GraphKeys.UPDATE_OPS)
        return gx.group(update, *statistics) if statistics else update


def _inputs(*shape: int, batch: int | str = "batch") -> tuple[gx.Tensor, gx.Tensor]:
    x = gx.placeholder("f32", (batch, *shape), name="x")
    return x, gx.placeholder("i64", (batch,), name="labels")


def _classifier(x: gx.Tensor, labels: gx.Tensor, logits: gx.Tensor, classes: int) -> Network:
    losses = nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    return Network(x, labels, logits, gx.mean(losses), classes)


# ---- fully connected ---------------------------------------------------------------------------


def mlp(batch: int | str = "batch") -> Network:
    """784-512-512-10 with ReLU."""
    x, labels = _inputs(784, batch=batch)
    h = layers.dense(x, 512, nn.relu)
    h = layers.dense(h, 512, nn.relu)
    return _classifier(x, labels, layers.dense(h, 10), 10)


def residual_mlp(depth: int, width: int = 64) -> Network:
    """`depth` residual layers h + relu(h W + b) of one width."""
    x, labels = _inputs(width)
    h = x
    for _ in range(depth):
        h = h + layers.dense(h, width, nn.relu)
    return _classifier(x, labels, layers.dense(h, 10), 10)


# ---- convolutional -----------------------------------------------------------------------------


def lenet() -> Network:
    """Caffe's LeNet on 28 x 28 images."""
    x, labels = _inputs(28, 28, 1)
    h = layers.max_pool2d(layers.conv2d(x, 20, 5), 2)
    h = layers.max_pool2d(layers.conv2d(h, 50, 5), 2)
    h = layers.dense(layers.flatten(h), 500, nn.relu)
    return _classifier(x, labels, layers.dense(h, 10), 10)


def alexnet(size: int = 224) -> Network:
    """AlexNet in one column without normalization (Krizhevsky, 2014)."""
    x, labels = _inputs(size, size, 3)
    relu = nn.relu
    h = layers.conv2d(x, 64, 11, strides=4, padding=2, activation=relu)
    h = layers.max_pool2d(h, 3, 2)
    h = layers.conv2d(h, 192, 5, padding=2, activation=relu)
    h = layers.max_pool2d(h, 3, 2)
    for filters in (384, 256, 256):
        h = layers.conv2d(h, filters, 3, padding=1, activation=relu)
    h = layers.flatten(layers.max_pool2d(h, 3, 2))
    h = layers.dense(layers.dense(h, 4096, relu), 4096, relu)
    return _classifier(x, labels, layers.dense(h, 1000), 1000)


def alexnet_caffe(size: int = 227) -> Network:
    """AlexNet in two columns with local response normalization (Krizhevsky et al., 2012)."""
    x, labels = _inputs(size, size, 3)
    conv = functools.partial(layers.conv2d, activation=nn.relu)
    norm = functools.partial(
        nn.local_response_normalization, depth_radius=2, alpha=1e-4 / 5, beta=0.75
    )
    h = layers.max_pool2d(norm(conv(x, 96, 11, strides=4)), 3, 2)
    h = layers.max_pool2d(norm(conv(h, 256, 5, padding=2, groups=2)), 3, 2)
    for filters, columns in ((384, 1), (384, 2), (256, 2)):
        h = conv(h, filters, 3, padding=1, groups=columns)
    h = layers.flatten(layers.max_pool2d(h, 3, 2))
    h = layers.dense(layers.dense(h, 4096, nn.relu), 4096, nn.relu)
    return _classifier(x, labels, layers.dense(h, 1000), 1000)


def vgg16(size: int = 224) -> Network:
    """VGG-16, configuration D (Simonyan and Zisserman, 2014)."""
    x, labels = _inputs(size, size, 3)
    h = x
    for filters, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(count):
            h = layers.conv2d(h, filters, 3, padding=1, activation=nn.relu)
        h = layers.max_pool2d(h, 2)
    h = layers.flatten(h)
    h = layers.dense(layers.dense(h, 4096, nn.relu), 4096, nn.relu)
    return _classifier(x, labels, layers.dense(h, 1000), 1000)


def _inception(h: gx.Tensor, *widths: int) -> gx.Tensor:
    relu = functools.partial(layers.conv2d, activation=nn.relu)
    one, three_in, three, five_in, five, pooled = widths
    branches = [
        relu(h, one, 1),
        relu(relu(h, three_in, 1), three, 3, padding=1),
        relu(relu(h, five_in, 1), five, 5, padding=2),
        relu(layers.max_pool2d(h, 3, 1, padding=1), pooled, 1),
    ]
    return gx.concat(branches, axis=-1)


def googlenet() -> Network:
    """GoogLeNet's main tower (Szegedy et al., 2014), 224 x 224 images."""
    x, labels = _inputs(224, 224, 3)
    conv = functools.partial(layers.conv2d, activation=nn.relu)
    h = layers.max_pool2d(conv(x, 64, 7, strides=2, padding=3), 3, 2, padding=1)
    h = conv(conv(h, 64, 1), 192, 3, padding=1)
    h = layers.max_pool2d(h, 3, 2, padding=1)
    h = _inception(h, 64, 96, 128, 16, 32, 32)
    h = _inception(h, 128, 128, 192, 32, 96, 64)
    h = layers.max_pool2d(h, 3, 2, padding=1)
    h = _inception(h, 192, 96, 208, 16, 48, 64)
    h = _inception(h, 160, 112, 224, 24, 64, 64)
    h = _inception(h, 128, 128, 256, 24, 64, 64)
    h = _inception(h, 112, 144, 288, 32, 64, 64)
    h = _inception(h, 256, 160, 320, 32, 128, 128)
    h = layers.max_pool2d(h, 3, 2, padding=1)
    h = _inception(h, 256, 160, 320, 32, 128, 128)
    h = _inception(h, 384, 192, 384, 48, 128, 128)
    return _classifier(x, labels, layers.dense(nn.global_avg_pool(h), 1000), 1000)


def _conv(h: gx.Tensor, filters: int, window: int, stride: int = 1) -> gx.Tensor:
    """A convolution without bias that keeps the size but for its stride."""
    pad = window // 2
    return layers.conv2d(h, filters, window, stride, pad, use_bias=False)


def _conv_norm(
    h: gx.Tensor, filters: int, window: int, stride: int = 1, training: bool = True
) -> gx.Tensor:
    return layers.batch_normalization(_conv(h, filters, window, stride), training)


def resnet50(size: int = 224, classes: int = 1000, training: bool = True) -> Network:
    """ResNet-50 (He et al., 2015), the stride in the 3 x 3 convolutions."""
    x, labels = _inputs(size, size, 3)
    conv_norm = functools.partial(_conv_norm, training=training)
    h = nn.relu(conv_norm(x, 64, 7, 2))
    h = layers.max_pool2d(h, 3, 2, padding=1)
    for stage, count in enumerate((3, 4, 6, 3)):
        width = 64 << stage
        for block in range(count):
            stride = 2 if stage and not block else 1
            skip = h if block else conv_norm(h, 4 * width, 1, stride)
            h = nn.relu(conv_norm(h, width, 1))
            h = nn.relu(conv_norm(h, width, 3, stride))
            h = nn.relu(conv_norm(h, 4 * width, 1) + skip)
    return _classifier(x, labels, layers.dense(nn.global_avg_pool(h), classes), classes)


def resnet_cifar(depth: int = 110) -> Network:
    """The ResNet of 6 n + 2 layers for 32 x 32 images (He et al., 2015), shortcuts of option A."""
    x, labels = _inputs(32, 32, 3)
    h = nn.relu(_conv_norm(x, 16, 3))
    for stage in range(3):
        width = 16 << stage
        for block in range((depth - 2) // 6):
            stride = 2 if stage and not block else 1
            skip = h
            if stride == 2:
                skip = gx.pad(h[:, ::2, ::2], [(0, 0), (0, 0), (0, 0), (0, width // 2)])
            inner = nn.relu(_conv_norm(h, width, 3, stride))
            h = nn.relu(_conv_norm(inner, width, 3) + skip)
    return _classifier(x, labels, layers.dense(nn.global_avg_pool(h), 10), 10)


def preactivation_resnet(depth: int = 1001) -> Network:
    """The pre-activation bottleneck ResNet of 9 n + 2 layers (He et al., 2016), 32 x 32 images."""
    x, labels = _inputs(32, 32, 3)
    h = _conv(x, 16, 3)
    for stage in range(3):
        width = 16 << stage
        for block in range((depth - 2) // 9):
            stride = 2 if stage and not block else 1
            active = nn.relu(layers.batch_normalization(h, True))
            skip = h if block else _conv(active, 4 * width, 1, stride)
            inner = nn.relu(_conv_norm(active, width, 1, stride))
            inner = nn.relu(_conv_norm(inner, width, 3))
            h = _conv(inner, 4 * width, 1) + skip
    h = nn.relu(layers.batch_normalization(h, True))
    return _classifier(x, labels, layers.dense(nn.global_avg_pool(h), 10), 10)


# ---- sequences and others ----------------------------------------------------------------------


def lstm(steps: int = 50, inputs: int = 256, units: int = 256) -> Network:
    """An unrolled LSTM (Hochreiter and Schmidhuber, 1997) that classifies a sequence."""
    x, labels = _inputs(steps, inputs)
    w = gx.Variable(nn.initializers.glorot_uniform()((inputs, 4 * units), "f32"), name="w")
    u = gx.Variable(nn.initializers.orthogonal()((units, 4 * units), "f32"), name="u")
    b = gx.Variable(np.zeros(4 * units, np.float32), name="b")
    h = c = x[:, 0, :1] * 0 + np.zeros(units, np.float32)
    for t in range(steps):
        gates = x[:, t] @ w + h @ u + b
        i, f, o, g = gx.split(gates, 4, axis=1)
        c = nn.sigmoid(f + 1) * c + nn.sigmoid(i) * gx.tanh(g)
        h = nn.sigmoid(o) * gx.tanh(c)
    return _classifier(x, labels, layers.dense(h, 10), 10)


def attention_block(x: gx.Tensor, length: int, width: int, heads: int) -> gx.Tensor:
    """A pre-norm self-attention block with its feed-forward layer (Vaswani et al., 2017)."""
    each = width // heads
    h = layers.layer_normalization(x)
    q, k, v = (
        gx.transpose(gx.reshape(layers.dense(h, width), (-1, length, heads, each)), (0, 2, 1, 3))
        for _ in range(3)
    )
    scores = gx.matmul(q, gx.transpose(k, (0, 1, 3, 2))) * each**-0.5
    mixed = gx.transpose(gx.matmul(nn.softmax(scores), v), (0, 2, 1, 3))
    h = x + layers.dense(gx.reshape(mixed, (-1, length, width)), width)
    gelu = functools.partial(nn.gelu, approximate=True)  # the form that the peers compute
    return h + layers.dense(layers.dense(layers.layer_normalization(h), 4 * width, gelu), width)


def transformer_block(length: int = 128, width: int = 256, heads: int = 4) -> Network:
    """One attention block and a classifier of the mean."""
    x, labels = _inputs(length, width)
    h = attention_block(x, length, width, heads)
    return _classifier(x, labels, layers.dense(gx.mean(h, axis=1), 10), 10)


def autoencoder() -> Network:
    """784-256-32-256-784 with sigmoid outputs and squared error; the labels are not used."""
    x, labels = _inputs(784)
    h = layers.dense(layers.dense(x, 256, nn.relu), 32)
    y = layers.dense(layers.dense(h, 256, nn.relu), 784, nn.sigmoid)
    loss = gx.mean(gx.square(y - x)) + 0.0 * gx.mean(gx.cast(labels, "f32"))
    return Network(x, labels, y, loss, 10)


NETWORKS: dict[str, Callable[[], Network]] = {
    "mlp": mlp,
    "autoencoder": autoencoder,
    "residual_mlp10": lambda: residual_mlp(10),
    "residual_mlp40": lambda: residual_mlp(40),
    "residual_mlp160": lambda: residual_mlp(160),
    "residual_mlp320": lambda: residual_mlp(320),
    "lenet": lenet,
    "alexnet": alexnet,
    "alexnet_caffe": alexnet_caffe,
    "vgg16": vgg16,
    "googlenet": googlenet,
    "resnet20": lambda: resnet_cifar(20),
    "resnet110": lambda: resnet_cifar(110),
    "resnet50": resnet50,
    "resnet1001": preactivation_resnet,
    "lstm": lstm,
    "transformer": transformer_block,
}

"""Neural networks: activations, convolutions, pools, losses, normalizations and layers.

The functions are pure: they take every tensor they use.  `nn.layers` makes variables, from
`nn.initializers`.  Imports: nn.*, ops.
"""

from __future__ import annotations

from graphc.nn import initializers, layers, losses
from graphc.nn.losses import (
    absolute_difference,
    contrastive_loss,
    cosine_distance,
    hinge_loss,
    huber_loss,
    kl_divergence,
    l2_loss,
    log_loss,
    mean_squared_error,
    sigmoid_cross_entropy_with_logits,
    smooth_l1_loss,
    softmax_cross_entropy_with_logits,
    sparse_softmax_cross_entropy_with_logits,
    total_variation,
    triplet_loss,
    weighted_cross_entropy_with_logits,
)
from graphc.nn.normalization import (
    BatchNorm,
    batch_norm,
    batch_normalization,
    group_norm,
    instance_norm,
    layer_norm,
    rms_norm,
)
from graphc.ops import activation, convolution, images, pooling
from graphc.ops.activation import *  # noqa: F403
from graphc.ops.arithmetic import add as bias_add
from graphc.ops.convolution import *  # noqa: F403
from graphc.ops.images import *  # noqa: F403
from graphc.ops.math import tanh
from graphc.ops.pooling import *  # noqa: F403
from graphc.ops.random import dropout
from graphc.ops.statistics import l2_normalize, log_softmax, moments, softmax

__all__ = [
    "BatchNorm",
    "absolute_difference",
    "batch_norm",
    "batch_normalization",
    "bias_add",
    "contrastive_loss",
    "cosine_distance",
    "dropout",
    "group_norm",
    "hinge_loss",
    "huber_loss",
    "initializers",
    "instance_norm",
    "kl_divergence",
    "l2_loss",
    "l2_normalize",
    "layer_norm",
    "layers",
    "log_loss",
    "log_softmax",
    "losses",
    "mean_squared_error",
    "moments",
    "rms_norm",
    "sigmoid_cross_entropy_with_logits",
    "smooth_l1_loss",
    "softmax",
    "softmax_cross_entropy_with_logits",
    "sparse_softmax_cross_entropy_with_logits",
    "tanh",
    "total_variation",
    "triplet_loss",
    "weighted_cross_entropy_with_logits",
]
__all__ += activation.__all__
__all__ += convolution.__all__
__all__ += images.__all__
__all__ += pooling.__all__

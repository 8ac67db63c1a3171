"""graphc: a static graph compiler.

    import graphc as gx

Declare placeholders and variables, build a graph with NumPy-named functions, differentiate it with
`gx.gradients`, and run it in a `gx.Session` or as a compiled `gx.function`.
"""

from __future__ import annotations

from graphc.graph import Graph, GraphKeys, Tensor, get_default_graph, reset_default_graph
from graphc.ops.arithmetic import *  # noqa: F403
from graphc.ops.define import constant
from graphc.ops.linalg import matmul
from graphc.ops.reduce import *  # noqa: F403
from graphc.ops.shape import *  # noqa: F403
from graphc.ops.state import *  # noqa: F403
from graphc.passes.differentiate import gradients, hessian_vector_product, jvp, vjp
from graphc.session import Session

"""When an output may live in an input's memory, and who is blamed by a kernel used twice."""

from __future__ import annotations

from dataclasses import replace

import pytest

import graphc as gx
from graphc import dims
from graphc.compiler import plan_cpu
from graphc.dims import DimLike
from graphc.kernel import Access, Accumulator, Contraction, Expr, LoopKernel, Stage, Store, Term
from graphc.ops.state import as_program if False else None

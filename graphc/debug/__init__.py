"""Debug mode: which pass, rule or kernel is the first to compute something wrong.

Imports: debug.stages, when it is used.
"""

from __future__ import annotations

from graphc.debug.report import Finding, Report
from graphc.debug.stages import check

__all__ = ["Finding", "Report", "check"]

"""The version, once: packaging reads it from here.  Imports nothing."""

from __future__ import annotations

__version__ = "0.1.0"

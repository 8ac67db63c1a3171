"""The version, once: packaging reads it from here.  Imports nothing of graphc."""

from __future__ import annotations

import time

__version__ = "0.1.0"

LOADED = time.time()
"""When this process loaded graphc; what changes on disk later is not what runs here."""

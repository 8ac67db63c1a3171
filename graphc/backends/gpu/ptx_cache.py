"""PTX kept between processes, by the text it was made from.

What a driver makes of it for its own GPU the driver keeps itself.  Imports: ptx, cache; LLVM's
version.
"""

from __future__ import annotations

from graphc.backends.gpu.ptx import Capability, to_ptx
from graphc.backends.llvm.target import binding
from graphc.cache import digest, open_cache

_KIND = "ptx"


def kept_ptx(text: str, capability: Capability) -> str:
    """As `to_ptx`; out of the cache on disk where that has it."""
    cache = open_cache()
    if cache is None:
        return to_ptx(text, capability)
    llvm = ".".join(map(str, binding().llvm_version_info))
    key = digest(_KIND, llvm, f"{capability[0]}.{capability[1]}", text)
    kept = cache.read(_KIND, key)
    if kept is not None:
        return kept.decode()
    made = to_ptx(text, capability)
    cache.write(_KIND, key, made.encode())
    return made

"""What the emulator says of a fault.  Imports: emulator_context, emulator_rewrite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from graphc.backends.gpu.emulator_context import FAULTS
from graphc.backends.gpu.emulator_rewrite import Site

Buffers = Sequence[tuple[int, int]]


def fault_message(
    name: str, found: Mapping[str, int], sites: Sequence[Site], buffers: Buffers
) -> str:
    """The message for the first fault of a launch; `found` are the context's words."""
    site = sites[found["site"] - 1]
    fault, value = FAULTS[found["fault"]], found["value"]
    what = _access(site, value, buffers) if fault == "access" else _other(fault, site, value)
    return f"{name}: {what}, CTA {found['cta']}, thread {found['thread']}, at: {site.line}"


def _access(site: Site, address: int, buffers: Buffers) -> str:
    """What is wrong with an access to an address."""
    access = site.access
    assert access is not None
    address %= 1 << 64
    if address % access.align:
        return f"misaligned {access.kind}: address {address:#x} is no multiple of {access.align}"
    return f"{access.kind} of {access.bytes} bytes outside {_places(site, address, buffers)}"


def _places(site: Site, address: int, buffers: Buffers) -> str:
    places = []
    for root in site.roots:
        if root.space == "global":
            start, size = buffers[root.number]
            places.append(f"argument {root.number}: byte {address - start} of {size}")
        else:
            places.append(f"the {root.bytes} bytes of {root.space} {root.name}")
    return " and ".join(places)


def _other(fault: str, site: Site, value: int) -> str:
    memory = " and ".join(
        f"argument {root.number}" if root.space == "global" else f"{root.space} {root.name}"
        for root in site.roots
    )
    if fault == "race":
        return f"a race in {memory} with {_culprit(site, value)}"
    return {
        "budget": "a loop that does not end",
        "unwritten": f"a read of what no thread has written in {memory}",
        "undelivered": f"a copy to {memory} by thread {value} that has not been waited for",
        "barrier": f"a divergent barrier: thread {value} is not there",
        "warp": f"lanes of a warp diverge: thread {value} is not there",
        "mask": f"mask {value:#x} of lanes that meet: only all 32 can",
        "copies": f"more than {value} copies under way",
    }[fault]


def _culprit(site: Site, value: int) -> str:
    """The other thread of a race."""
    if any(root.space == "shared" for root in site.roots):
        return f"thread {value}"
    cta, thread = value >> 10, value & 1023
    return "several CTAs" if cta < 0 else f"CTA {cta - 1}, thread {thread}"

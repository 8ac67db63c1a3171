"""What LLVM makes of register tiles for processors this machine is not: its assembly is read.

Sums must stay in vector registers of full width, and no processor loads more than two vectors
while it multiplies two.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

import llvmlite.binding as llvm
import pytest
from contraction_reference import matmul, module_text
from test_winograd import convolution

from graphc.backends.codegen.contract_lines_tiling import line_tiling
from graphc.backends.codegen.contract_tiling import tile
from graphc.backends.codegen.targets import AVX512, NEON, Target
from graphc.kernel import Contraction

FEWEST = 16
"""Multiply-adds of loops that are looked at: others are not the register tile's."""


@dataclass(frozen=True)
class Processor:
    """What LLVM calls it, and how it writes a multiply-add, a load of any width and the stack."""

    triple: str
    name: str
    target: Target
    multiply: str
    whole: str
    load: str
    stack: str

    def assembly(self, text: str) -> str:
        llvm.initialize_all_targets()
        llvm.initialize_all_asmprinters()
        module = llvm.parse_assembly(text)
        machine = llvm.Target.from_triple(self.triple).create_target_machine(
            cpu=self.name, opt=2, reloc="pic", codemodel="small"
        )
        return str(machine.emit_assembly(module))


def _x86(name: str) -> Processor:
    """Where numbers come from memory they have brackets, and a place to go to is written last."""
    load, stack = r"\(.*%[xyz]mm", r"^v\w+\s+-?\w*\(%r[sb]p.*%[xyz]mm"
    return Processor("x86_64-linux", name, AVX512, r"^vfn?madd\w+ps", "zmm", load, stack)


PROCESSORS = {
    **{name: _x86(name) for name in ("znver4", "sapphirerapids")},
    "neoverse-v1": Processor(
        "aarch64-linux", "neoverse-v1", NEON, r"^fmla", "4s", r"^ld", r"^ld.*q\d+.*\[sp"
    ),
}


def loops(assembly: str) -> Iterator[list[str]]:
    """The innermost loops: from a label to a jump back, with no other such jump between."""
    lines = [re.split(r"##?\s|//", line)[0].strip() for line in assembly.splitlines()]
    places = {line[:-1]: i for i, line in enumerate(lines) if re.match(r"[.\w]+:$", line)}
    ended = -1
    for i, line in enumerate(lines):
        found = re.match(r"(?:j\w+|b\.\w+|b|cbn?z|tbn?z)\s.*?([.\w]+)$", line)
        begin = places.get(found.group(1), i) if found else i
        if ended < begin < i:
            ended = i
            yield [x for x in lines[begin : i + 1] if x and not x.endswith(":")]


def tiles(c: Contraction, p: Processor) -> list[list[str]]:
    """The loops of a kernel that multiply and add."""
    found = loops(p.assembly(module_text(c, p.target)))
    return [x for x in found if len(matching(x, p.multiply)) >= FEWEST]


def matching(loop: list[str], pattern: str) -> list[str]:
    return [line for line in loop if re.search(pattern, line)]


KERNELS = {
    "packed_in_place": matmul(512, 512, 512),
    "rows_share_sets": matmul(512, 512, 1024),
    "narrow": matmul(512, 10, 512),
    "half": matmul(960, 24, 512),
    "transposed_right": matmul(128, 512, 512, tb=True),
    "strips": matmul(512, 512, 512, ta=True),
    "lines": matmul(128, 64, 512, ta=True),
    "few_rows": matmul(8, 1024, 1024),
    "winograd": convolution(2, (1, 28, 28), 64, 64, 1, (28, 28)),
    "winograd_narrow": convolution(2, (1, 32, 32), 16, 16, 1, (32, 32)),
}


@pytest.mark.parametrize("processor", PROCESSORS.values(), ids=PROCESSORS)
@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_sums_stay_in_whole_registers(kernel: Contraction, processor: Processor) -> None:
    found = tiles(kernel, processor)
    assert found
    for loop in found:
        multiplies = matching(loop, processor.multiply)
        assert len(matching(multiplies, processor.whole)) == len(multiplies)
        assert not matching(loop, processor.stack)
        assert len(matching(loop, processor.load)) <= 1.25 * len(multiplies)


def test_taller_tiles_are_seen_to_spill() -> None:
    taller = replace(AVX512, rows=(24, 15, 11, 8), rows_in_place=(24, 15, 11, 8))
    processor = replace(PROCESSORS["znver4"], target=taller)
    for ta in (False, True):
        found = tiles(matmul(510, 512, 512, ta=ta), processor)
        assert any(matching(loop, processor.stack) for loop in found)


def test_lines_are_what_they_are_called() -> None:
    assert line_tiling(KERNELS["lines"], AVX512) is not None
    assert line_tiling(KERNELS["strips"], AVX512) is None


@pytest.mark.parametrize(("steps", "most"), [(1024, 8), (4096, 8), (9216, 8), (512, 16)])
def test_rows_of_a_tile_leave_a_set_of_the_cache_its_ways(steps: int, most: int) -> None:
    """A set has 8 ways of 4096 bytes: rows 4096 bytes apart share one, every other one of those
    2048 bytes apart."""
    assert tile(matmul(512, 512, steps), AVX512).tile_rows <= most
    assert tile(matmul(512, 512, steps + 16), AVX512).tile_rows > 8
    assert tile(matmul(512, 512, steps, ta=True), AVX512).tile_rows > 8

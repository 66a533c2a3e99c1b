"""What the hot loops of every instruction set are made of, as LLVM's assembly tells: nothing runs them."""

import functools
import re
import shutil
from pathlib import Path

import pytest

from bench.disassembly import (
    DOT_PRODUCT,
    MULTIPLY_ADD,
    OBJDUMPS,
    disassemble,
    innermost_loops,
    parse_assembly,
    parse_objdump,
)
from bench.instructions import HOT_LOOPS, Functions, Loop, hot_kernels, markdown, row
from tokc.targets.cpu.codegen import compile_kernels
from tokc.targets.cpu.isa import ISAS

LOOPS = {hot.name: hot for hot in HOT_LOOPS}
X86 = [name for name, isa in ISAS.items() if isa.triple.startswith("x86_64")]
ARM = [name for name in ISAS if name not in X86]
CALL = re.compile(r"callq?|blr?")
EVEX_ONLY = re.compile(r"%zmm|%k[0-7]|%[xy]mm(1[6-9]|2\d|3[01])")


@functools.cache
def assembly(name: str) -> str:
    """Return the assembly of the hot kernels."""
    import tvm

    isa = ISAS[name]
    module = tvm.IRModule({kernel.symbol: kernel.build() for kernel in hot_kernels(isa)})
    target = {"kind": "llvm", "mtriple": isa.triple, "mcpu": isa.mcpu, "mattr": list(isa.mattr)}
    return str(tvm.tirx.build(module, target=tvm.target.Target(target)).inspect_source("asm"))


@functools.cache
def functions(name: str) -> Functions:
    return parse_assembly(assembly(name))


def hot(loop: str, name: str) -> Loop:
    found = LOOPS[loop].find(functions(name))
    assert found is not None, f"{name} has no loop '{loop}'"
    return found


def names(text: str) -> set[str]:
    """Return the instructions that occur in a text of assembly."""
    return {each.name for function in parse_assembly(text).values() for each in function}


@pytest.mark.parametrize("name", ISAS)
@pytest.mark.parametrize("loop", LOOPS)
def test_a_hot_loop_calls_nothing_and_multiplies_more_than_it_has_instructions(loop: str, name: str) -> None:
    found = hot(loop, name)
    assert found.number(CALL) == 0
    assert found.multiply_adds(LOOPS[loop].products) > len(found.instructions)


@pytest.mark.parametrize("loop", LOOPS)
def test_loops_for_avx512_keep_what_they_add_up_in_registers(loop: str) -> None:
    """None spills where operands lie ready; where they are unpacked, one instruction in twenty may."""
    counts = hot(loop, "avx512-vnni").counts(LOOPS[loop].products)
    unpacks = LOOPS[loop].packed and LOOPS[loop].products is DOT_PRODUCT
    assert counts.spills <= (counts.total // 20 if unpacks else 0), counts


def test_a_third_of_the_instructions_of_many_rows_on_avx512_are_dot_products() -> None:
    counts = hot("quant_linear, many rows", "avx512-vnni").counts(DOT_PRODUCT)
    assert counts.products >= 64
    assert counts.share > 1 / 3


def test_prefill_on_avx512_is_mostly_multiply_adds() -> None:
    counts = hot("attention, prefill", "avx512-vnni").counts(MULTIPLY_ADD)
    assert counts.products >= 24
    assert counts.share > 0.5


@pytest.mark.parametrize("name", ["x86-64-v3", "avx-vnni"])
def test_code_for_avx2_holds_nothing_of_avx512(name: str) -> None:
    assert EVEX_ONLY.findall(assembly(name)) == []
    assert ("vpdpbusd" in assembly(name)) == (name == "avx-vnni")
    assert ("vpmaddubsw" in assembly(name)) == (name == "x86-64-v3")


def test_many_rows_on_amx_go_through_the_matrix_unit() -> None:
    assert hot("quant_linear, many rows", "amx-int8").number(re.compile("tdpb[su]{2}d")) > 0
    assert not any(each.startswith("tdp") for each in names(assembly("avx512-vnni")))


def test_neoverse_n1_gets_neither_i8mm_nor_sve() -> None:
    used = names(assembly("neoverse-n1"))
    assert "sdot" in used
    assert used.isdisjoint({"usdot", "sudot", "smmla", "ummla", "usmmla", "bfdot", "bfmmla"})
    assert re.findall(r"\b[zp]\d+\.[bhsd]\b", assembly("neoverse-n1")) == []


def test_neoverse_v1_multiplies_unsigned_by_signed_bytes() -> None:
    assert {"usdot"} <= names(assembly("neoverse-v1"))


@pytest.mark.parametrize("name", ["x86-64-v3", "neoverse-n1"])
def test_objdump_and_llvm_tell_of_the_same_loops(name: str, tmp_path: Path) -> None:
    isa = ISAS[name]
    machine = isa.triple.split("-")[0]
    if not any(map(shutil.which, (OBJDUMPS[machine][0], "llvm-objdump"))):
        pytest.skip(f"no disassembler for {machine}: the Debian package {OBJDUMPS[machine][1]}")
    dumped: Functions = {}
    for code in compile_kernels(hot_kernels(isa), isa):
        (tmp_path / "kernel.o").write_bytes(code)
        dumped |= parse_objdump(disassemble(tmp_path / "kernel.o", machine))
    for kernel in hot_kernels(isa):
        products = DOT_PRODUCT if kernel.symbol.startswith("quant") else MULTIPLY_ADD
        counts = [
            [loop.counts(products) for loop in innermost_loops(each[kernel.symbol])]
            for each in (dumped, functions(name))
        ]
        assert counts[0] == counts[1], kernel.symbol


def test_a_loop_is_found_counted_and_its_spills_told_from_its_operands() -> None:
    text = """
f:
\tmovq\t%rsp, %rbp
.LBB0_1:
\txorl\t%ecx, %ecx
.LBB0_2:
\tvmovups\t(%rdi,%rcx), %zmm1
\tvpdpbusd\t(%rsi){1to16}, %zmm1, %zmm2
\tvpdpbusd\t64(%rsp), %zmm1, %zmm3
\tvmovups\t%zmm3, -128(%rbp)
\tvmovups\t%zmm3, (%rdx)
\tprefetcht1\t(%rdi)
\tcmpq\t$9, %rcx
\tjne\t.LBB0_2
\tjmp\t.LBB0_1
"""
    (loop,) = innermost_loops(parse_assembly(text)["f"])
    counts = loop.counts(DOT_PRODUCT)
    assert (counts.total, counts.products) == (8, 2)
    assert (counts.loads, counts.stores, counts.spills) == (2, 1, 2)
    assert loop.multiply_adds(DOT_PRODUCT) == 128


def test_a_loop_that_is_missing_is_a_line_without_figures() -> None:
    line = row(HOT_LOOPS[0], ISAS["neoverse-n1"], {"quant_linear_1x1": []})
    assert set(line[2:]) == {"–"}
    assert markdown([line]).count("\n") == 2

"""What is wrong is found: in short kernels, and in real ones of whose PTX one thing is changed."""

import re
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
import pytest

from tests import ptx
from tests.ptx.compile import Compiled, Compiler
from tests.targets.gpu import test_linear
from tests.targets.gpu.interpreted import Array, info
from tests.targets.gpu.ptx.emulated import emulate
from tests.targets.gpu.ptx.snippets import compute, kernel, launch
from tokc.targets.gpu.kernel import Kernel
from tokc.targets.gpu.kernels.gated_activation import GatedActivation
from tokc.targets.gpu.tiles import Tile

I32 = np.int32
LANES = np.arange(32, dtype=I32)
NEIGHBOUR = """shl.b32 %r1, %r39, 2; mov.b32 %r2, global_smem; add.s32 %r1, %r1, %r2;
st.shared.b32 [%r1], %r39; {between}
xor.b32 %r3, %r39, 32; shl.b32 %r3, %r3, 2; add.s32 %r3, %r3, %r2; ld.shared.b32 %d, [%r3];"""
COPY = """ld.param.b64 %rd1, [p0]; mad.wide.u32 %rd2, %r39, 4, %rd1; mov.b32 %r2, global_smem;
shl.b32 %r1, %r39, 2; add.s32 %r1, %r1, %r2; cp.async.ca.shared.global [%r1], [%rd2], 0x4;
cp.async.commit_group; {between} ld.shared.b32 %d, [%r1];"""


def test_warps_that_exchange_through_shared_memory_need_a_barrier() -> None:
    threads = np.arange(64, dtype=I32)
    found = compute(NEIGHBOUR.format(between="bar.sync 0;"), threads, out=I32, threads=64, shared=256)
    np.testing.assert_array_equal(found, threads ^ 32)
    with pytest.raises(ptx.Race, match="reads shared memory that another warp wrote, without a barrier"):
        compute(NEIGHBOUR.format(between=""), threads, out=I32, threads=64, shared=256)


def test_a_write_after_another_warps_read_needs_a_barrier_too() -> None:
    body = NEIGHBOUR.format(between="bar.sync 0;") + "{} st.shared.b32 [%r1], 0;"
    threads = np.arange(64, dtype=I32)
    compute(body.format("bar.sync 0;"), threads, out=I32, threads=64, shared=256)
    with pytest.raises(ptx.Race, match="writes shared memory that another warp read"):
        compute(body.format(""), threads, out=I32, threads=64, shared=256)


def test_lanes_that_store_different_numbers_in_one_place_race() -> None:
    store = "mov.b32 %r1, global_smem; st.shared.b32 [%r1], {}; ld.shared.b32 %d, [%r1];"
    assert (compute(store.format("5"), LANES, out=I32, shared=4) == 5).all()
    with pytest.raises(ptx.Race, match="different bytes in one place"):
        compute(store.format("%r39"), LANES, out=I32, shared=4)


def test_what_cp_async_brings_is_there_after_the_wait_and_no_sooner() -> None:
    found = compute(COPY.format(between="cp.async.wait_group 0;"), LANES, out=I32, shared=128)
    np.testing.assert_array_equal(found, LANES)
    for between in ("", "cp.async.wait_group 1;", "bar.sync 0;"):
        with pytest.raises(ptx.Race, match=r"a cp\.async without a wait still writes"):
            compute(COPY.format(between=between), LANES, out=I32, shared=128)


def test_shared_memory_is_read_only_where_it_was_written() -> None:
    with pytest.raises(ptx.UninitializedRead, match="never written"):
        compute("mov.b32 %r1, global_smem; ld.shared.b32 %d, [%r1+4];", LANES, out=I32, shared=8)
    with pytest.raises(ptx.OutOfBounds, match="4 bytes at 8 leave 8 bytes of shared memory"):
        compute("mov.b32 %r1, global_smem; ld.shared.b32 %d, [%r1+8];", LANES, out=I32, shared=8)
    with pytest.raises(ptx.Misaligned, match="4 bytes of shared memory"):
        compute("mov.b32 %r1, global_smem; ld.shared.b32 %d, [%r1+2];", LANES, out=I32, shared=8)


def test_a_barrier_and_a_branch_are_taken_by_all_threads_of_a_cta() -> None:
    half = "setp.lt.s32 %p1, %r39, 16; "
    with pytest.raises(ptx.DivergentBarrier, match=r"'@%p1 bar\.sync 0' is not executed by all threads"):
        compute(half + "@%p1 bar.sync 0; mov.b32 %d, 0;", LANES, out=I32)
    with pytest.raises(ptx.DivergentBarrier, match="shfl"):
        compute(half + "mov.b32 %d, 0; @%p1 shfl.sync.bfly.b32 %d, %a0, 1, 31, -1;", LANES, out=I32)
    with pytest.raises(ptx.DivergentBranch, match="thread: 16"):
        compute(half + "mov.b32 %d, 0; @%p1 bra $L__end;\n$L__end:\n", LANES, out=I32)


def test_a_register_is_written_before_it_is_read_unless_nothing_ever_writes_it() -> None:
    with pytest.raises(ptx.UndefinedRegister, match="'%r5' is used before it is written"):
        compute("mov.b32 %d, %r5; mov.b32 %r5, 0;", LANES, out=I32)
    # An undefined value of the compiler's own, of which it uses nothing.
    assert (compute("and.b32 %d, %r5, 0;", LANES, out=I32) == 0).all()


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("mov.b32 %d, 0; frob.b32 %d, %d;", "line 19: instruction 'frob' is not executed: 'frob.b32 %d, %d'"),
        ("add.rz.f32 %d, %a0, %a0;", "modifier '.rz' of 'add' is not executed"),
        ("add.s64 %d, %a0, %a0;", "register '%d' does not hold a s64"),
        ("add.s32 %d, %a0, %q1;", "operand '%q1' is not understood"),
        ("shfl.sync.bfly.b32 %d, %a0, 1, 31, 15;", "only whole warps are executed"),
        ("mov.b32 %r1, 15; redux.sync.add.s32 %d, %a0, %r1;", "only whole warps are executed"),
        (".shared .b8 more[4]; mov.b32 %d, 0;", "unknown directive"),
    ],
)
def test_what_is_not_executed_is_an_error_that_names_it(body: str, problem: str) -> None:
    with pytest.raises(ptx.Unsupported, match=re.escape(problem)):
        compute(body, LANES, out=I32)


def test_memory_ends_at_the_end_of_each_allocation_and_a_fault_says_who_left_it() -> None:
    memory = ptx.Memory()
    first, second = memory.put(np.zeros(40, I32)), memory.put(np.zeros(64, I32))
    body = """ld.param.b64 %rd1, [p0]; mad.wide.u32 %rd1, %r39, 4, %rd1;
    mov.u32 %r1, %ctaid.x; mad.wide.u32 %rd1, %r1, 128, %rd1; ld.global.b32 %r2, [%rd1];"""
    launch(kernel(body, 1), memory, second, grid=2)
    with pytest.raises(ptx.OutOfBounds) as caught:
        launch(kernel(body, 1), memory, first, grid=2)
    fault = caught.value
    assert (fault.cta, fault.thread, fault.address) == ((1, 0, 0), 8, first + 160)
    assert fault.site is not None
    assert fault.site.text == "ld.global.b32 %r2, [%rd1]"
    assert "nearest is" in str(fault)
    with pytest.raises(ptx.OutOfBounds, match="no allocation"):
        launch(kernel(body, 1), memory, 0)
    with pytest.raises(ptx.Misaligned, match="an access of 4 bytes"):
        launch(kernel(body, 1), memory, second + 2)


def test_ctas_and_threads_that_store_different_bytes_in_one_place_race() -> None:
    memory = ptx.Memory()
    pointer = memory.put(np.zeros(4, I32))
    body = "ld.param.b64 %rd1, [p0]; mov.u32 %r1, {}; st.global.b32 [%rd1], %r1;"
    launch(kernel(body.format("%nctaid.x"), 1), memory, pointer, grid=3)
    for grid, what in ((300, "%ctaid.x"), (1, "%tid.x")):
        with pytest.raises(ptx.Race, match="stores other bytes of global memory than another"):
            launch(kernel(body.format(what), 1), memory, pointer, grid=grid)


@dataclass(frozen=True)
class Subject:
    """A real kernel, its arrays, and what it should compute of them."""

    kernel: Kernel
    arrays: Mapping[str, Array]
    sizes: Mapping[str, int]
    output: str
    wanted: Array

    def run(self, program: Compiled) -> bool:
        """Execute PTX on copies; return whether the result is right."""
        arrays = {name: array.copy() for name, array in self.arrays.items()}
        emulate(self.kernel, program, arrays, self.sizes)
        return bool(np.allclose(arrays[self.output], self.wanted, rtol=1e-3, atol=1e-2))


@pytest.fixture(scope="module")
def product() -> Subject:
    """A product with 4-bit weights: copies in three stages, matrix units, sums kept in registers."""
    made = test_linear.linear(72, 384, 4, symmetric=False, tile=Tile(64, 128, warps=4, stages=3))
    parts, x = test_linear.weight(made), test_linear.activations(made, 17)
    y = np.zeros((17, 72), np.float32)
    arrays = {**parts, "x": x, "info": info(tokens=17), "y": y}
    return Subject(
        made, arrays, {"tokens": 17}, "y", x.astype(np.float64) @ test_linear.unpack(parts, made).T
    )


Change = Callable[[re.Match[str]], str]


def changed(program: Compiled, pattern: str, change: str | Change) -> list[Compiled]:
    """Return one program for each place that matches, changed there alone."""
    found = []
    for match in re.finditer(pattern, program.text):
        new = change if isinstance(change, str) else change(match)
        text = program.text[: match.start()] + new + program.text[match.end() :]
        found.append(replace(program, text=text))
    assert found, f"nothing matches {pattern}"
    return found


def shifted(by: int) -> Change:
    """Return what adds to the offset of an address, the second group of a match."""
    return lambda match: f"{match[1]}{int(match[2]) + by}{match[3]}"


INTO_SHARED = r"(cp\.async\.c[ag]\S* \[ %r\d+ \+ )(\d+)( \], \[)"
FROM_GLOBAL = r"(cp\.async\.c[ag]\S* \[ %r\d+ \+ \d+ \], \[ %rd\d+ \+ )(\d+)( \])"
TO_GLOBAL = r"(st\.global\S* \[ %rd\d+ \+ )(\d+)( \])"
# What is changed, how, which faults every such program must end in, and how many are tried at most.
SEEDED: list[tuple[str, str | Change, tuple[type[ptx.Fault], ...], int]] = [
    (r"bar\.sync[^;]*;", "", (ptx.Race,), 9),
    (r"cp\.async\.wait_group[^;]*;", "", (ptx.Race,), 9),
    (r"(cp\.async\.wait_group\s+)(\d+)()", shifted(9), (ptx.Race,), 9),
    (INTO_SHARED, shifted(16), (ptx.Race, ptx.OutOfBounds), 9),
    (INTO_SHARED, shifted(2), (ptx.Misaligned,), 3),
    (INTO_SHARED, shifted(1 << 17), (ptx.OutOfBounds,), 3),
    (FROM_GLOBAL, shifted(2), (ptx.Misaligned,), 3),
    (FROM_GLOBAL, shifted(1 << 24), (ptx.OutOfBounds,), 3),
    (TO_GLOBAL, shifted(2), (ptx.Misaligned, ptx.OutOfBounds), 3),
    # A row or a column one past the last.
    (r"setp\.lt\.s32", "setp.le.s32", (ptx.OutOfBounds,), 2),
    (r"@%p\d+ (?=st\.global)", "", (ptx.OutOfBounds,), 3),
]


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_a_seeded_fault_is_found(compiled: Compiler, product: Subject, architecture: str) -> None:
    program = compiled(product.kernel, architecture)
    assert product.run(program)
    for pattern, change, faults, most in SEEDED:
        for wrong in changed(program, pattern, change)[:most]:
            with pytest.raises(faults):
                product.run(wrong)


def test_a_warpgroup_needs_its_fences_and_its_waits(compiled: Compiler, product: Subject) -> None:
    program = compiled(product.kernel, "sm_90")
    for wrong in changed(program, r"wgmma\.fence[^;]*;", ""):
        with pytest.raises(ptx.Race, match=r"without a 'wgmma\.fence' between"):
            product.run(wrong)
    with pytest.raises(ptx.Race, match=r"without a 'fence\.proxy\.async' since"):
        product.run(changed(program, r"fence\.proxy\.async[^;]*;", "")[0])
    with pytest.raises(ptx.UndefinedRegister, match="while a wgmma without a wait still writes it"):
        product.run(changed(program, r"wgmma\.wait_group[^;]*;", "")[-1])


@pytest.mark.parametrize(
    ("pattern", "change"),
    [
        (r"\.x4\.trans", ".x4"),
        (r"(ld\.shared\S*\s+\{[^}]*\}, \[%r\d+)()(\])", lambda match: f"{match[1]}+16{match[3]}"),
        (r"%ctaid\.x", "%ctaid.y"),
        (r"mma\.sync(.*?)\{([^}]*)\}, \{([^,]*), ([^,]*),", r"mma.sync\1{\2}, {\4, \3,"),
    ],
)
def test_a_wrong_number_is_found_where_no_rule_is_broken(
    compiled: Compiler, product: Subject, pattern: str, change: str | Change
) -> None:
    program = compiled(product.kernel, "sm_80")
    wrong = changed(program, pattern, change if callable(change) else lambda m: m.expand(change))[0]
    with suppress(ptx.Fault):
        assert not product.run(wrong)


def test_parameters_are_taken_from_where_the_kernel_declares_them(compiled: Compiler) -> None:
    made = GatedActivation(96, 192, "silu")
    program = compiled(made, "sm_80")
    memory = ptx.Memory()
    x, out = np.ones((1, 192), np.float16), np.zeros((1, 96), np.float16)
    pointers = [memory.put(x), memory.put(info(tokens=1)), memory.put(out)]
    loaded = ptx.load(program.text, program.shared_bytes)
    assert [(each.offset, each.pointer) for each in loaded.parameters] == [(8 * i, True) for i in range(5)]

    def run(values: list[int]) -> Array:
        loaded.launch((1, 1), struct.pack(f"<{len(values)}Q", *values), memory)
        return memory.get(pointers[2], out)

    with pytest.raises(ptx.OutOfBounds):
        run([pointers[1], pointers[0], pointers[2], 0, 0])
    with pytest.raises(ptx.BadArguments, match="takes 40 bytes of parameters, not 24"):
        run(pointers)
    with pytest.raises(ptx.OutOfBounds):
        run([pointers[0] + 16, *pointers[1:], 0, 0])
    with pytest.raises(ptx.Misaligned):
        run([pointers[0], pointers[1] + 2, pointers[2], 0, 0])
    assert (memory.get(pointers[2], out) == 0).all()
    np.testing.assert_allclose(run([*pointers, 0, 0]), 1 / (1 + np.exp(-1)), rtol=1e-3)


def test_a_fault_names_the_line_of_the_source(compiled: Compiler, product: Subject) -> None:
    program = compiled(product.kernel, "sm_80")
    wrong = changed(program, r"bar\.sync[^;]*;", "")[0]
    with pytest.raises(ptx.Race, match=r"linear\.py:\d+") as caught:
        product.run(wrong)
    site = caught.value.site
    assert site is not None
    assert site.text in " ".join(wrong.text.split("\n")[site.line - 1].split())

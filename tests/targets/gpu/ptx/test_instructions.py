"""Each kind of instruction on a few numbers, with results worked out by hand."""

from typing import Any

import numpy as np
import pytest

from tests import ptx
from tests.ptx.types import Array
from tests.targets.gpu.ptx.snippets import compute, kernel, launch

I32, U32, I64, U64, F16, F32, I16, U16 = (
    np.int32, np.uint32, np.int64, np.uint64, np.float16, np.float32, np.int16, np.uint16
)  # fmt: skip
NAN, INF = float("nan"), float("inf")
LANES = np.arange(32)
Case = tuple[str, list[tuple[type[np.generic], Any]], type[np.generic], Any]

ARITHMETIC: list[Case] = [
    ("add.s32 %d, %a0, %a1;", [(I32, 2**31 - 1), (I32, 1)], I32, -(2**31)),
    ("sub.s32 %d, %a0, 7;", [(I32, 5)], I32, -2),
    ("mul.lo.s32 %d, %a0, %a0;", [(I32, 65537)], I32, 131073),
    ("mul.hi.u32 %d, %a0, %a0;", [(U32, 2**32 - 1)], U32, 2**32 - 2),
    ("mul.hi.s32 %d, %a0, 3;", [(I32, -2)], I32, -1),
    ("mul.wide.s32 %d, %a0, 3;", [(I32, -2)], I64, -6),
    ("mul.wide.u32 %d, %a0, 2;", [(U32, 2**32 - 1)], U64, 2**33 - 2),
    ("mul.hi.u64 %d, %a0, %a0;", [(U64, 2**40)], U64, 2**16),
    ("mad.lo.s32 %d, %a0, -3, %a1;", [(I32, 5), (I32, 1)], I32, -14),
    ("mad.wide.s32 %d, %a0, 4, %a1;", [(I32, -1), (I64, 2**40)], I64, 2**40 - 4),
    ("div.s32 %d, %a0, 2;", [(I32, -7)], I32, -3),
    ("rem.s32 %d, %a0, 2;", [(I32, -7)], I32, -1),
    ("div.u32 %d, %a0, 10;", [(U32, 2**32 - 1)], U32, 429496729),
    ("min.s32 %d, %a0, 1;", [(I32, -1)], I32, -1),
    ("min.u32 %d, %a0, 1;", [(U32, 2**32 - 1)], U32, 1),
    ("abs.s32 %d, %a0;", [(I32, -9)], I32, 9),
    ("neg.f32 %d, %a0;", [(F32, 1.5)], F32, -1.5),
    # (1 + e)(1 - e) - 1 = -e^2, which is lost where the product is rounded first.
    ("fma.rn.f32 %d, %a0, %a1, 0fBF800000;", [(F32, 1 + 2**-12), (F32, 1 - 2**-12)], F32, -(2.0**-24)),
    ("fma.rn.f16 %d, %a0, %a0, %a1;", [(F16, 1 + 2**-10), (F16, -1)], F16, 2.0**-9 + 2.0**-20),
    ("fma.rn.f32.f16 %d, %a0, %a0, %a1;", [(F16, 1 + 2**-10), (F32, -1)], F32, 2.0**-9 + 2.0**-20),
    ("mul.f32x2 %d, %a0, %a0;", [(U64, 0x40400000_C0000000)], U64, 0x41100000_40800000),
    ("max.f32 %d, %a0, %a1, 0f40000000;", [(F32, -1), (F32, NAN)], F32, 2.0),
    ("div.full.f32 %d, %a0, %a1;", [(F32, 1), (F32, 3)], F32, np.float32(1) / np.float32(3)),
    ("rsqrt.approx.f32 %d, %a0;", [(F32, 16)], F32, 0.25),
    ("rcp.rn.f32 %d, %a0;", [(F32, -8)], F32, -0.125),
    ("sqrt.rn.f32 %d, %a0;", [(F32, 2)], F32, np.float32(2**0.5)),
    ("ex2.approx.f32 %d, %a0;", [(F32, -127)], F32, 2.0**-127),
    ("ex2.approx.ftz.f32 %d, %a0;", [(F32, -127)], F32, 0.0),
    ("lg2.approx.f32 %d, %a0;", [(F32, 0.125)], F32, -3.0),
    ("max.f32 %d, %a0, %a1;", [(F32, NAN), (F32, 2)], F32, 2.0),
    ("max.NaN.f32 %d, %a0, %a1;", [(F32, NAN), (F32, 2)], F32, NAN),
    ("add.sat.f32 %d, %a0, %a0;", [(F32, 0.75)], F32, 1.0),
    ("add.f16x2 %d, %a0, %a1;", [(U32, 0x3C004000), (U32, 0x3C003C00)], U32, 0x40004200),
    ("add.s16x2 %d, %a0, %a1;", [(U32, 0x0001FFFF), (U32, 0x00010001)], U32, 0x00020000),
    ("fma.rn.bf16x2 %d, %a0, %a0, %a0;", [(U32, 0x40003F80)], U32, 0x40C04000),
    ("dp4a.s32.s32 %d, %a0, %a1, 10;", [(U32, 0xFF020304), (U32, 0x01010101)], I32, 18),
]
BITS: list[Case] = [
    ("and.b32 %d, %a0, 12;", [(U32, 10)], U32, 8),
    ("not.b32 %d, %a0;", [(U32, 0)], U32, 2**32 - 1),
    ("shl.b32 %d, %a0, 33;", [(U32, 1)], U32, 0),
    ("shr.s32 %d, %a0, 40;", [(I32, -5)], I32, -1),
    ("shr.u32 %d, %a0, 31;", [(U32, 2**31)], U32, 1),
    ("bfe.u32 %d, %a0, 8, 8;", [(U32, 0xABCD1234)], U32, 0x12),
    ("bfe.s32 %d, %a0, 4, 4;", [(I32, 0xF0)], I32, -1),
    ("bfe.s32 %d, %a0, 28, 8;", [(I32, -(2**31))], I32, -8),
    ("bfe.u32 %d, %a0, 28, 8;", [(U32, 2**31)], U32, 8),
    ("bfi.b32 %d, %a0, %a1, 4, 8;", [(U32, 0xFFF), (U32, 0xA000000B)], U32, 0xA0000FFB),
    ("lop3.b32 %d, %a0, %a1, 3, 0xE8;", [(U32, 0b1010), (U32, 0b0110)], U32, 0b0010),
    ("lop3.b32 %d, %a0, %a1, 3, 0x96;", [(U32, 0b1010), (U32, 0b0110)], U32, 0b1111),
    ("prmt.b32 %d, %a0, %a1, 0x5410;", [(U32, 0x33221100), (U32, 0x77665544)], U32, 0x55441100),
    ("prmt.b32 %d, %a0, %a1, 0xB3A0;", [(U32, 0x80221101), (U32, 0)], U32, 0xFF800001),
    ("shf.l.wrap.b32 %d, %a0, %a1, 36;", [(U32, 0xF0000000), (U32, 1)], U32, 0x1F),
    ("shf.r.clamp.b32 %d, %a0, %a1, 40;", [(U32, 5), (U32, 9)], U32, 9),
    ("popc.b32 %d, %a0;", [(U32, 0xF00F)], U32, 8),
    ("mov.b32 %d, {%a0, %a1};", [(U16, 1), (U16, 2)], U32, 0x20001),
    ("mov.b32 {%h1, %d}, %a0;", [(U32, 0x20001)], U16, 2),
    ("setp.lt.u32 %p1, %a0, 1; selp.b32 %d, 1, 0, %p1;", [(I32, -1)], I32, 0),
    ("setp.lt.s32 %p1, %a0, 1; selp.b32 %d, 1, 0, %p1;", [(I32, -1)], I32, 1),
    ("setp.lt.f32 %p1, %a0, %a0; selp.b32 %d, 1, 0, %p1;", [(F32, NAN)], I32, 0),
    ("setp.neu.f32 %p1, %a0, %a0; selp.b32 %d, 1, 0, %p1;", [(F32, NAN)], I32, 1),
    ("setp.ne.f32 %p1, %a0, %a0; selp.b32 %d, 1, 0, %p1;", [(F32, NAN)], I32, 0),
    ("setp.eq.s32 %p1, %a0, 4; setp.gt.and.s32 %p2|%p3, %a0, 3, %p1; selp.b32 %d, 2, 1, %p3;",
     [(I32, 4)], I32, 1),
    ("mov.b32 %d, 5; setp.gt.s32 %p1, %a0, 0; @!%p1 mov.b32 %d, 6;", [(I32, 0)], I32, 6),
]  # fmt: skip
CONVERSION: list[Case] = [
    ("cvt.rni.s32.f32 %d, %a0;", [(F32, 2.5)], I32, 2),
    ("cvt.rzi.s32.f32 %d, %a0;", [(F32, -2.7)], I32, -2),
    ("cvt.rmi.s32.f32 %d, %a0;", [(F32, -2.1)], I32, -3),
    ("cvt.rpi.s32.f32 %d, %a0;", [(F32, 2.1)], I32, 3),
    ("cvt.rzi.s32.f32 %d, %a0;", [(F32, NAN)], I32, 0),
    ("cvt.rzi.s32.f32 %d, %a0;", [(F32, 1e20)], I32, 2**31 - 1),
    ("cvt.rzi.u32.f32 %d, %a0;", [(F32, -4)], U32, 0),
    ("cvt.rni.s64.f32 %d, %a0;", [(F32, INF)], I64, 2**63 - 1),
    ("cvt.sat.s8.s32 %h1, %a0; cvt.s32.s8 %d, %h1;", [(I32, 300)], I32, 127),
    ("cvt.s32.s8 %d, %a0;", [(I16, 0x1FF)], I32, -1),
    ("cvt.u32.u8 %d, %a0;", [(I16, 0x1FF)], U32, 255),
    ("cvt.s64.s32 %d, %a0;", [(I32, -1)], I64, -1),
    ("cvt.u64.u32 %d, %a0;", [(I32, -1)], U64, 2**32 - 1),
    ("cvt.rn.f16.f32 %d, %a0;", [(F32, 2049)], F16, 2048),
    ("cvt.rn.f16.f32 %d, %a0;", [(F32, 2051)], F16, 2052),
    ("cvt.f32.f16 %d, %a0;", [(F16, 0.1)], F32, np.float16(0.1)),
    ("cvt.rn.f16.s16 %d, %a0;", [(I16, -8)], F16, -8),
    ("cvt.rn.f32.s32 %d, %a0;", [(I32, 2**24 + 1)], F32, 2.0**24),
    ("cvt.rn.f16x2.f32 %d, %a0, %a1;", [(F32, 1), (F32, 2)], U32, 0x3C004000),
    ("cvt.rn.bf16x2.f32 %d, %a0, %a1;", [(F32, 1 + 2**-8), (F32, 1 + 3 * 2**-8)], U32, 0x3F803F82),
    ("cvt.rn.satfinite.e4m3x2.f32 %d, %a0, %a1;", [(F32, 500), (F32, 1)], U16, 0x7E38),
    ("cvt.rn.f16x2.e4m3x2 %d, %a0;", [(U16, 0x7E38)], U32, 0x5F003C00),
]


@pytest.mark.parametrize(("body", "given", "out", "wanted"), [*ARITHMETIC, *BITS, *CONVERSION])
def test_an_instruction_gives_its_number(
    body: str, given: list[tuple[type[np.generic], Any]], out: type[np.generic], wanted: Any
) -> None:
    inputs = [np.full(32, value).astype(dtype) for dtype, value in given]
    found = compute(body, *inputs, out=out)
    np.testing.assert_array_equal(found, np.full(32, wanted).astype(out))


@pytest.mark.parametrize(
    ("how", "wanted"),
    [
        ("bfly.b32 %d, %a0, 5, 31, -1", LANES ^ 5),
        ("idx.b32 %d, %a0, 7, 31, -1", np.full(32, 7)),
        ("up.b32 %d, %a0, 3, 0, -1", np.where(LANES < 3, LANES, LANES - 3)),
        ("down.b32 %d, %a0, 3, 31, -1", np.where(LANES > 28, LANES, LANES + 3)),
        # In segments of 8 lanes.
        ("idx.b32 %d, %a0, 1, 0x181f, -1", LANES // 8 * 8 + 1),
        ("down.b32 %d, %a0, 2, 0x181f, -1", np.where(LANES % 8 > 5, LANES, LANES + 2)),
    ],
)
def test_lanes_read_each_other(how: str, wanted: Array) -> None:
    np.testing.assert_array_equal(compute(f"shfl.sync.{how};", LANES.astype(I32), out=I32), wanted)


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ("setp.lt.s32 %p1, %a0, 3; vote.sync.ballot.b32 %d, %p1, -1;", 7),
        ("setp.lt.s32 %p1, %a0, 3; vote.sync.any.pred %p2, %p1, -1; selp.b32 %d, 1, 0, %p2;", 1),
        ("setp.lt.s32 %p1, %a0, 3; vote.sync.all.pred %p2, %p1, -1; selp.b32 %d, 1, 0, %p2;", 0),
        ("redux.sync.add.s32 %d, %a0, -1;", 496),
        ("redux.sync.max.s32 %d, %a0, -1;", 31),
        ("mov.b32 %r1, -1; redux.sync.min.s32 %d, %a0, %r1;", 0),
    ],
)
def test_a_warp_combines_its_lanes(body: str, wanted: int) -> None:
    np.testing.assert_array_equal(compute(body, LANES.astype(I32), out=I32), np.full(32, wanted))


def test_mma_multiplies_the_elements_that_the_lanes_hold() -> None:
    """Lane 5 holds A[1, 11] in the high half of its third register, lane 13 B[11, 3]; D[1, 3] is lane 5's."""
    a, b, c = np.zeros(32, U32), np.zeros(32, U32), np.full(32, 0.5, F32)
    a[5], b[13] = 0x40000000, 0x42000000  # 2 and 3
    body = """mov.b32 %r1, 0;
    mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32
        {%r2, %d, %r3, %r4}, {%r1, %r1, %a0, %r1}, {%r1, %a1}, {%a2, %a2, %a2, %a2};"""
    found = compute(body, a, b, c, out=F32)
    np.testing.assert_array_equal(found, np.where(LANES == 5, 6.5, 0.5))


def test_mma_of_bytes_adds_in_integers() -> None:
    """Lane 6 holds A[1, 8..11] in its first register, lane 14 B[8..11, 3], and D[1, 3] is lane 5's second."""
    a, b, c = np.zeros(32, U32), np.zeros(32, U32), np.full(32, 2**24 + 1, I32)
    a[6], b[14] = 0x0000FF02, 0x00000305  # 2, -1 and 5, 3
    body = """mov.b32 %r1, 0;
    mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32
        {%r2, %d, %r3, %r4}, {%a0, %r1, %r1, %r1}, {%a1, %r1}, {%a2, %a2, %a2, %a2};"""
    found = compute(body, a, b, c, out=I32)
    np.testing.assert_array_equal(found - c, np.where(LANES == 5, 7, 0))


@pytest.mark.parametrize(("trans", "lane5"), [("", (10, 11)), (".trans", (17, 25))])
def test_ldmatrix_deals_a_matrix_to_lanes(trans: str, lane5: tuple[int, int]) -> None:
    """Rows of 8 u16 lie 16 bytes apart; lane 5 gets row 1, columns 2 and 3, or row 2 and 3 of column 1."""
    body = f"""shl.b32 %r1, %r39, 2; mov.b32 %r2, global_smem; add.s32 %r3, %r2, %r1;
    st.shared.b32 [%r3], %a0; bar.sync 0;
    and.b32 %r4, %r39, 7; shl.b32 %r4, %r4, 4; add.s32 %r4, %r2, %r4;
    ldmatrix.sync.aligned.m8n8.x1{trans}.shared.b16 {{%d}}, [%r4];"""
    pairs = np.arange(64, dtype=U16).view(U32)
    found = compute(body, pairs, out=U32, shared=128).view(U16).reshape(32, 2)
    assert tuple(found[5]) == lane5


def test_stmatrix_undoes_ldmatrix() -> None:
    body = """mov.b32 %r2, global_smem; and.b32 %r4, %r39, 7; shl.b32 %r4, %r4, 4; add.s32 %r4, %r2, %r4;
    stmatrix.sync.aligned.m8n8.x1.trans.shared.b16 [%r4], {%a0}; bar.sync 0;
    ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%d}, [%r4];"""
    pairs = np.arange(64, dtype=U16).view(U32)
    np.testing.assert_array_equal(compute(body, pairs, out=U32, shared=128), pairs)


def test_vectors_are_loaded_and_stored_whole() -> None:
    memory = ptx.Memory()
    x, y = np.arange(128, dtype=I32), np.zeros(128, I32)
    pointers = memory.put(x), memory.put(y)
    body = """ld.param.b64 %rd1, [p0]; ld.param.b64 %rd2, [p1];
    mad.wide.u32 %rd1, %r39, 16, %rd1; mad.wide.u32 %rd2, %r39, 16, %rd2;
    ld.global.v4.b32 {%r1, %r2, %r3, %r4}, [%rd1]; st.global.v2.b32 [%rd2 + 8], {%r4, %r1};"""
    counts = launch(kernel(body, 2), memory, *pointers)
    wanted = np.zeros((32, 4), I32)
    wanted[:, 2:] = x.reshape(32, 4)[:, [3, 0]]
    np.testing.assert_array_equal(memory.get(pointers[1], y).reshape(32, 4), wanted)
    assert (counts.load_bytes, counts.load_sectors) == (512, 16)
    assert (counts.store_bytes, counts.store_sectors) == (256, 16)


def test_atomics_of_all_lanes_add_up_and_each_finds_another_sum() -> None:
    memory = ptx.Memory()
    total, found = np.array([100], I32), np.zeros(64, I32)
    pointers = memory.put(total), memory.put(found)
    body = """ld.param.b64 %rd1, [p0]; ld.param.b64 %rd2, [p1];
    mov.u32 %r2, %ctaid.x; mad.lo.s32 %r2, %r2, 32, %r39; mad.wide.u32 %rd2, %r2, 4, %rd2;
    atom.global.gpu.acq_rel.add.u32 %r1, [%rd1], 2; st.global.b32 [%rd2], %r1;"""
    launch(kernel(body, 2), memory, *pointers, grid=2)
    assert memory.get(pointers[0], total)[0] == 100 + 2 * 64
    assert sorted(memory.get(pointers[1], found)) == list(range(100, 228, 2))


def test_blocks_have_registers_of_their_own() -> None:
    body = """{ .reg .b32 t<2>; mov.b32 t0, %a0; add.s32 t1, t0, 1;
    { .reg .b32 t<1>; mov.b32 t0, 9; } add.s32 %d, t0, t1; }"""
    np.testing.assert_array_equal(compute(body, LANES.astype(I32), out=I32), 2 * LANES + 1)


def test_a_loop_runs_as_often_as_each_cta_asks() -> None:
    """CTA c adds c + 1 times, so CTAs leave the loop at different turns."""
    memory = ptx.Memory()
    out = np.zeros(5, I32)
    pointer = memory.put(out)
    body = """mov.u32 %r1, %ctaid.x; mov.b32 %r2, 0; mov.b32 %r3, 0;
$L__loop:
    add.s32 %r3, %r3, 10; setp.lt.s32 %p1, %r2, %r1; add.s32 %r2, %r2, 1;
    @%p1 bra $L__loop;
    ld.param.b64 %rd1, [p0]; mad.wide.u32 %rd1, %r1, 4, %rd1; st.global.b32 [%rd1], %r3;"""
    launch(kernel(body, 1), memory, pointer, grid=5)
    np.testing.assert_array_equal(memory.get(pointer, out), [10, 20, 30, 40, 50])

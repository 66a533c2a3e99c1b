"""Memory planning: nothing alive together may overlap, and the arena stays near its lower bound."""

from hypothesis import given
from hypothesis import strategies as st

from tokc.targets.memory import ALIGNMENT, live_ranges, overlapping, plan_memory
from tokc.targets.plan import Buffer, Launch, Operand, Plan

LIMITS = {"tokens": 7, "rows": 3}


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Draw launches over a few buffers, each buffer used at least once."""
    count = draw(st.integers(1, 12))
    sizes = draw(st.lists(st.integers(1, 300), min_size=count, max_size=count))
    buffers = [
        Buffer(f"b{i}", "arena", "f32", (draw(st.sampled_from(("tokens", "rows", 5))), size))
        for i, size in enumerate(sizes)
    ]
    uses = draw(st.lists(st.sets(st.integers(0, count - 1), min_size=1, max_size=3), min_size=1, max_size=20))
    uses.append(set(range(count)) - set().union(*uses) or {0})
    launches = [
        Launch("k", tuple(Operand(f"b{i}") for i in sorted(used)), "tokens", "Op", None) for used in uses
    ]
    return Plan(LIMITS, ("k",), tuple(buffers), tuple(launches))


@given(plans())
def test_buffers_that_live_together_share_no_byte(plan: Plan) -> None:
    planned = plan_memory(plan)
    assert overlapping(planned) == []
    assert all(b.offset is not None and b.offset % ALIGNMENT == 0 for b in planned.buffers)
    assert all((b.offset or 0) + b.bytes(LIMITS) <= planned.arena_bytes for b in planned.buffers)


@given(plans())
def test_the_arena_holds_at_least_the_busiest_launch_and_at_most_everything(plan: Plan) -> None:
    ranges = live_ranges(plan)
    sizes = {b.name: -(-b.bytes(LIMITS) // ALIGNMENT) * ALIGNMENT for b in plan.buffers}
    alive = [
        sum(sizes[name] for name, (first, last) in ranges.items() if first <= index <= last)
        for index in range(len(plan.launches))
    ]
    assert max(alive) <= plan_memory(plan).arena_bytes <= sum(sizes.values())


def test_a_chain_of_equal_buffers_takes_the_room_of_two() -> None:
    buffers = tuple(Buffer(f"b{i}", "arena", "f32", (16,)) for i in range(10))
    launches = tuple(
        Launch("k", (Operand(f"b{i}"), Operand(f"b{i + 1}")), "tokens", "Op", None) for i in range(9)
    )
    assert plan_memory(Plan(LIMITS, ("k",), buffers, launches)).arena_bytes == 2 * 64


def test_overlapping_finds_a_wrong_plan() -> None:
    buffers = (Buffer("a", "arena", "f32", (16,), 0), Buffer("b", "arena", "f32", (16,), 32))
    launches = (Launch("k", (Operand("a"), Operand("b")), "tokens", "Op", None),)
    assert len(overlapping(Plan(LIMITS, ("k",), buffers, launches, 96))) == 1

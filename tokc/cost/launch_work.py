"""The work of one kernel launch, as `plan.json` states it: enough to count any step's FLOPs and bytes."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace

INT8, F32 = "int8", "f32"


@dataclass(frozen=True)
class LaunchWork:
    """What a launch computes and moves; predicted from shapes, bytes as the kernel's buffers hold them.

    FLOPs are `row_flops` a row (a token of the step, or a logit row) and `attended_flops` a token that a row
    attends to. Bytes are `whole_bytes` once a step (weights; of experts the share that the rows choose, one
    row `row_share` of all, each as if apart from the others), `row_bytes` a row (activations, cache entries
    written), and `cached_bytes` a token of each sequence's cache that is read. `window` bounds what a token
    attends to, 0 where nothing does. `link_bytes` a row leave the device for others. `arithmetic` tells which
    peak holds for the FLOPs: int8 or f32.
    """

    arithmetic: str = F32
    row_flops: float = 0.0
    attended_flops: float = 0.0
    whole_bytes: float = 0.0
    row_bytes: float = 0.0
    cached_bytes: float = 0.0
    window: int = 0
    row_share: float = 1.0
    link_bytes: float = 0.0

    def flops(self, rows: int, attended: int) -> float:
        """Return the FLOPs of a step where its rows attend to `attended` tokens in all."""
        return rows * self.row_flops + attended * self.attended_flops

    def memory_bytes(self, rows: int, cached: int) -> float:
        """Return the bytes that come from memory: weights, and `cached` tokens of all sequences' caches."""
        share = 1.0 - (1.0 - self.row_share) ** rows
        return self.whole_bytes * share + cached * self.cached_bytes

    def bytes(self, rows: int, cached: int) -> float:
        """Return all bytes of a step; those of its own rows stay in the CPU's caches where they fit."""
        return self.memory_bytes(rows, cached) + rows * self.row_bytes

    def times(self, devices: int) -> "LaunchWork":
        """Return the work of `devices` that each do this."""
        amounts = ("row_flops", "attended_flops", "whole_bytes", "row_bytes", "cached_bytes", "link_bytes")
        return replace(self, **{name: devices * getattr(self, name) for name in amounts})

    def moving_only(self) -> "LaunchWork":
        """Return the same without FLOPs, for a launch that converts what another node computes."""
        return replace(self, arithmetic=F32, row_flops=0.0, attended_flops=0.0)

    def to_json(self) -> dict[str, object]:
        """Return the fields that are not at their defaults."""
        stated = asdict(self)
        return {one.name: stated[one.name] for one in fields(self) if stated[one.name] != one.default}

    @classmethod
    def from_json(cls, value: Mapping[str, float | int | str]) -> "LaunchWork":
        """Return the work that `to_json` stated; fields of later versions are passed over."""
        known = {one.name for one in fields(cls)}
        return cls(**{name: item for name, item in value.items() if name in known})  # type: ignore[arg-type]

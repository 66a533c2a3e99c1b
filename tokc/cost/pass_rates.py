"""What each pass did to the speed on this machine, as `tokc build --ledger full` measured it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PassRate:
    """The rate of decoding after a pass, with nothing of the passes after it but the cache's layout.

    `tokens_per_s` is None where that program has no code on the target, as `reason` says.
    """

    number: int
    pass_spec: str
    tokens_per_s: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class PassRates:
    """The rates of one build, of one sequence with `context` tokens; each from the least time of a token."""

    artifact: str
    manifest_sha256: str
    measured_at: str
    context: int
    rows: tuple[PassRate, ...]
    foreign_cpu: float = 0.0
    schema_version: int = 1

    def after(self, number: int) -> float | None:
        """Return tokens a second after the pass of this number, the first being 1; None if not measured."""
        return next((row.tokens_per_s for row in self.rows if row.number == number), None)

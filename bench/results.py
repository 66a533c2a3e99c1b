"""What the measurements amount to: who is measured again, ratios to the best peer, goals, and the roof."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bench.foreign import Measurement
from bench.rows import ROOF_GOALS, ROWS, RSS_GOAL, RSS_ROWS, SCALING_OF_LIMIT, Row

OURS = "tokc"
# A peer this much worse than the best one in the first round is not measured again.
SCREEN = 0.3

Json = dict[str, Any]


@dataclass
class Figures:
    """The rounds of every program in one row, and why a program has none."""

    row: Row
    rounds: dict[str, list[Measurement]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def add(self, program: str, measurement: Measurement) -> None:
        """Add a round of a program."""
        self.rounds.setdefault(program, []).append(measurement)

    def screened(self) -> list[str]:
        """Return the peers that are too far from the best one to be measured again."""
        first = {name: value(rounds[0]) for name, rounds in self.rounds.items() if name != OURS}
        if not first:
            return []
        if self.row.lower_is_better:
            limit = min(first.values()) * (1 + SCREEN)
            return [name for name, figure in first.items() if figure > limit]
        limit = max(first.values()) * (1 - SCREEN)
        return [name for name, figure in first.items() if figure < limit]

    @property
    def best_peer(self) -> str | None:
        """Return the peer with the best median."""
        peers = {name: median(rounds) for name, rounds in self.rounds.items() if name != OURS}
        choose = min if self.row.lower_is_better else max
        return choose(peers, key=lambda name: peers[name]) if peers else None

    @property
    def ratios(self) -> list[float]:
        """Return tokc's figure over the best peer's, of each round that both were in."""
        peer = self.best_peer
        if peer is None or OURS not in self.rounds:
            return []
        pairs = zip(self.rounds[OURS], self.rounds[peer], strict=False)
        return [value(ours) / value(theirs) for ours, theirs in pairs]

    def to_json(self) -> Json:
        """Return everything that was measured, and what follows from it."""
        ratios = self.ratios
        return {
            "model": self.row.model,
            "unit": self.row.unit,
            "lower_is_better": self.row.lower_is_better,
            "best_peer": self.best_peer,
            "ratio": statistics.median(ratios) if ratios else None,
            "ratio_by_round": ratios,
            "roof": self._roof(),
            "programs": {name: summary(rounds) for name, rounds in self.rounds.items()},
            "measured_once": self.screened(),
            "errors": self.errors,
            "left_out": self.left_out,
        }

    def _roof(self) -> Json | None:
        """Return the share of the read bandwidth that tokc's decode of one sequence used, round by round."""
        decodes = self.row.kind == "decode" and self.row.what.sequences == 1
        if not decodes or OURS not in self.rounds:
            return None
        shares = [
            roof_share(value(ours), ours.result["step_bytes"], ours.result["read_bytes_per_s"])
            for ours in self.rounds[OURS]
        ]
        last = self.rounds[OURS][-1].result
        return {
            "share": statistics.median(shares),
            "share_by_round": shares,
            "step_bytes": last["step_bytes"],
            "read_bytes_per_s": [ours.result["read_bytes_per_s"] for ours in self.rounds[OURS]],
        }


def value(measurement: Measurement) -> float:
    """Return the best repeat: the others were slowed by something else."""
    return float(measurement.result["value"])


def median(rounds: list[Measurement]) -> float:
    """Return the median over rounds."""
    return statistics.median(value(each) for each in rounds)


def roof_share(steps_per_s: float, step_bytes: float, read_bytes_per_s: float) -> float:
    """Return which share of the memory's speed the steps used."""
    return steps_per_s * step_bytes / read_bytes_per_s


def summary(rounds: list[Measurement]) -> Json:
    """Return the figures of one program over its rounds."""
    values = [value(each) for each in rounds]
    found: Json = {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "rounds": values,
        "repeats": [each.result["repeats"] for each in rounds],
        "foreign_share": [round(each.foreign_share, 3) for each in rounds],
    }
    if "rss_mb" in rounds[0].result:
        found["rss_mb"] = max(each.result["rss_mb"] for each in rounds)
        found["load_s"] = statistics.median(each.result["load_s"] for each in rounds)
    if "read_bytes_per_s_by_threads" in rounds[0].result:
        found["read_bytes_per_s_by_threads"] = rounds[-1].result["read_bytes_per_s_by_threads"]
    return found


def peak_rss(rows: Mapping[str, Json], names: tuple[str, ...]) -> Json | None:
    """Return tokc's peak over the least peer's, each the highest of its peaks in the rows `names`."""
    if any(name not in rows for name in names):
        return None
    measured = [rows[name]["programs"] for name in names]
    common = set.intersection(*(set(programs) for programs in measured))
    peaks = {name: max(programs[name]["rss_mb"] for programs in measured) for name in sorted(common)}
    peers = {name: peak for name, peak in peaks.items() if name != OURS}
    if not peers or OURS not in peaks:
        return None
    best = min(peers, key=lambda name: peers[name])
    return {"rss_mb": peaks, "best_peer": best, "ratio": peaks[OURS] / peaks[best]}


def conclusions(rows: Mapping[str, Json]) -> Json:
    """Return ratios, best peers, goals, roof and memory of the rows measured so far."""
    memory = {name: found for name, of in RSS_ROWS.items() if (found := peak_rss(rows, of)) is not None}
    compared = {name: row for name, row in rows.items() if row["ratio"] is not None} | memory
    goals = {name: goal for name, row in rows.items() if (goal := _goal(name, row)) is not None}
    goals |= {name: _met(found["ratio"], RSS_GOAL, "ratio", lower=True) for name, found in memory.items()}
    roof = {name: row["roof"]["share"] for name, row in rows.items() if row.get("roof")}
    goals |= {
        f"roof_{name}": _met(roof[name], wanted, "roof", lower=False)
        for name, wanted in ROOF_GOALS.items()
        if name in roof
    }
    return {
        "ratios": {name: row["ratio"] for name, row in compared.items()},
        "best_peer": {name: row["best_peer"] for name, row in compared.items()},
        "goals": goals,
        "roof": roof,
        "peak_rss": memory,
    }


def _goal(name: str, row: Json) -> Json | None:
    ours = row["programs"].get(OURS)
    if ours is None:
        return None
    goal, lower = ROWS[name].goal, row["lower_is_better"]
    if goal is None:
        by_threads = ours.get("read_bytes_per_s_by_threads")
        if not by_threads:
            return None
        one, two = by_threads
        return _met(ours["median"], SCALING_OF_LIMIT * two / one, "value", lower=lower)
    figure = ours["median"] if goal.of == "value" else row["ratio"]
    return None if figure is None else _met(figure, goal.value, goal.of, lower=lower)


def _met(figure: float, goal: float, of: str, *, lower: bool) -> Json:
    return {"goal": goal, "of": of, "figure": figure, "met": figure <= goal if lower else figure >= goal}

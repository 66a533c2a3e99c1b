"""`make soak`: minutes of load; exit code 1 if anything leaked, differed or failed undeclared."""

import argparse
import asyncio
import json
import sys
from pathlib import Path

from tests.soak.run import soak

SHOWN_FAULTS = 20


def main() -> int:
    """Run and tell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=int, default=500, help="answers to make again alone")
    parser.add_argument("--most-slope", type=float, default=1.0, help="MiB a minute")
    parser.add_argument("--out", type=Path, default=Path("out/soak.json"))
    given = parser.parse_args()
    outcome = asyncio.run(
        soak(
            seconds=given.seconds,
            clients=given.clients,
            seed=given.seed,
            keep=given.keep,
            most_slope_mib_per_min=given.most_slope,
        )
    )
    given.out.parent.mkdir(parents=True, exist_ok=True)
    aside = given.out.with_suffix(".part")
    aside.write_text(json.dumps(outcome.to_json(), indent=1) + "\n")
    aside.rename(given.out)
    shown = {**outcome.to_json(), "faults": outcome.faults[:SHOWN_FAULTS]}
    print(json.dumps(shown, indent=1))  # noqa: T201
    return 1 if outcome.faults else 0


if __name__ == "__main__":
    sys.exit(main())

"""Answer many prompts at once; the engine puts them into the same steps.

python examples/many_at_once.py NAME.tokc
"""

import asyncio
import sys
from pathlib import Path

import tokc

PROMPTS = ("The capital of France is", "Water boils at", "A compiler is")


async def main(artifact: Path) -> None:
    """Each task waits for its own answer; one thread drives the steps for all."""
    with tokc.load(artifact) as engine:
        tasks = [engine.agenerate(prompt, max_tokens=12, seed=1) for prompt in PROMPTS]
        for prompt, result in zip(PROMPTS, await asyncio.gather(*tasks), strict=True):
            milliseconds = 1e3 * result.timing.ttft_s
            print(f"{prompt}{result.text!r}  (first token after {milliseconds:.0f} ms)")


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))

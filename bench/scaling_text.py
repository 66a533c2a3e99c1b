"""The page of `bench.scaling`."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.scaling import Demand, Model, Refusal, Replica

HOURS_A_MONTH = 730
HEADS = (
    "device", "sequences at once", "tokens/s a device", "ms between tokens", "ms to read a prompt", "engine",
    "devices", "kW", "USD an hour",
)  # fmt: skip
INTRODUCTION = """# One million users, on paper

What serving a million users takes on each device of the sheet. **Every figure of a device is predicted**,
from the counted work of each model and the makers' data sheets; nothing here was run on an accelerator.
`python -m bench.scaling` makes this page anew.

## What is asked for

All assumed; change `Demand` in bench/scaling.py and make the page again.

| input | value |
|:--|:--|
| users | {users:,}, each {requests:g} requests a day |
| a request | {prompt} tokens of prompt, {output} of answer; nothing found in the prefix cache |
| the busiest hour | {peak:g} times the day's mean: {per_s:.0f} requests, {tokens:,.0f} tokens out a second |
| time between two tokens of an answer | at most {tpot:.0f} ms on average, prompts of others read in between |
| speed counted on | {reached:.0%} of what bytes over bandwidth and FLOPs over peak allow |
| use of a device in the busiest hour | {busy:.0%}; the rest is for bursts and for devices that fail |
| memory of a device | {memory:.0%}, for weights and cache; one device a replica, no model cut over several |
| the engine's own time | {python:.0f} µs a token, not overlapped with the device: measured \
(`python -m bench.step_overhead`, greedy, batch 16, a CPU that others used too, so an upper figure) |

"""
METHOD = """## How it is predicted

A device keeps as many sequences running as memory and the time between tokens allow and as makes the most
tokens. Their prompts are read one by one between the steps, so a sequence's cycle is all prompts, then a
step for each token at the context in the middle of the answers: `batch × output ÷ (batch × prefill + output
× step + engine)`. Times of prefill and step are the least that the counted work takes, divided by the share
counted on. Devices are the busiest hour's tokens over a device's rate, over its use. *Engine* is the share
of the cycle that the engine's own time takes: at {ceiling:,.0f} tokens a second one process is used up by
it, however fast its device. *kW* are the boards' power limits, without hosts and cooling. Prices are those
of `prices.toml`; it has none of accelerators, so those rows have no price. Weights are in 4 bits in groups
of 32, the cache in f16.

On the one machine that was measured, the share counted on is about right: SmolLM2 at batch 16 made 3385
tokens/s (docs/performance.md), {own_share:.0%} of the {own:,.0f} predicted for the same steps with no
prompt in between.

## What is not in it

Queues (a request may wait though the mean fits), the network, routers and load balancers, redundancy over
zones, loading times of replicas that are added, speculation, cached prefixes, and whether an accelerator's
kernels reach the share that is counted on ([what was verified how](targets/cuda.md)).
"""


def page(
    demand: "Demand",
    models: Mapping[str, "Model"],
    rows: Mapping[str, Sequence["Replica | Refusal"]],
    own: float,
) -> str:
    """Return the page; `own` are the tokens a second predicted for the machine that was measured."""
    parts = [
        INTRODUCTION.format(
            users=demand.users,
            requests=demand.requests_a_day,
            prompt=demand.prompt,
            output=demand.output,
            peak=demand.peak,
            per_s=demand.requests_per_s,
            tokens=demand.output_tokens_per_s,
            tpot=1e3 * demand.tpot_s,
            reached=demand.reached,
            busy=demand.busy,
            memory=demand.memory_used,
            python=1e6 * demand.python_s,
        )
    ]
    parts += [_table(models[name], found) for name, found in rows.items()]
    parts.append(METHOD.format(ceiling=1 / demand.python_s, own=own, own_share=3385 / own))
    return "".join(parts)


def _table(model: "Model", found: Sequence["Replica | Refusal"]) -> str:
    weights, cache = model.weight_bytes / 1e9, model.kv_bytes_per_token / 1024
    lines = [
        f"## {model.name}: {weights:.2f} GB of weights, {cache:.0f} KiB of cache a token\n",
        f"| {' | '.join(HEADS)} |",
        f"|:--|{'--:|' * (len(HEADS) - 1)}",
        *(f"| {' | '.join(_cells(one))} |" for one in found),
    ]
    return "\n".join(lines) + "\n\n"


def _cells(one: "Replica | Refusal") -> list[str]:
    device = one.device
    label = f"{device.name}, {device.host.cpu}"
    if not hasattr(one, "batch"):
        return [label, one.reason, *[""] * (len(HEADS) - 2)]
    return [
        label,
        str(one.batch),
        f"{one.tokens_per_s:,.0f}",
        f"{1e3 * one.token_s:.1f}",
        f"{1e3 * one.prefill_s:.1f}",
        f"{one.python_share:.0%}",
        f"{one.replicas:,}",
        "" if one.kilowatts is None else f"{one.kilowatts:.1f}",
        "" if one.usd_per_hour is None else f"{one.usd_per_hour:,.0f} ({one.device.price.name})",
    ]

"""Predict what others published for accelerators, and print the error: `python -m bench.published [--write]`.

Their programs are other than tokc's, so that the launches are those of a plain decoder of the same shape: a
product for q, k and v, attention, and so on. What this judges is the model of costs and the published shares
of the roofs (`tokc/cost/efficiencies.toml`), not tokc's kernels.
"""

import argparse
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tokc.cost.launch_work import F32, INT8, LaunchWork
from tokc.cost.machine import machine_of
from tokc.cost.sheet import named_device
from tokc.cost.step_model import Launches, Step, StepModel, StepWorks
from tokc.report import units

FIGURES = Path(__file__).with_name("published.toml")
DOCUMENT = Path("docs/cost.md")
BEGIN, END = "<!-- published begin -->\n", "<!-- published end -->"
HALF, FULL = 2, 4  # bytes of an activation, of a residual
EVERY_CHUNK = 1 << 30
FULL_SHARE = 0.9  # of what the weights leave of the memory, for the cache of a full device
EIGHT = 8  # bits, whose products have a peak of their own


@dataclass(frozen=True)
class Shape:
    """A decoder with gated feed-forward layers and a head of its own."""

    name: str
    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int

    def launches(self, bits: int) -> tuple[Launches, ...]:
        """Return the launches of a step with weights, cache and products of `bits`."""
        query, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        products = ((query + 2 * kv, self.hidden), (self.hidden, query), (2 * self.inner, self.hidden))
        cached = 2 * kv * bits / 8
        attention = LaunchWork(attended_flops=4.0 * query, cached_bytes=cached, row_bytes=2.0 * query * HALF)
        of_layer = [
            *(self._product(rows, columns, bits) for rows, columns in (*products, (self.hidden, self.inner))),
            *(_moving(size) for size in (cached + (query + kv) * HALF, 3.0 * self.inner * HALF)),
            *2 * (_moving(self.hidden * (2 * FULL + HALF)),),
        ]
        found = [Launches("Linear", "tokens", work, self.layers) for work in of_layer]
        head = self._product(self.vocab, self.hidden, bits)
        return (
            *found,
            Launches("PagedAttention", "tokens", attention, self.layers),
            Launches("Linear", "rows", head, 1),
        )

    def most(self, memory_bytes: float, bits: int, tokens: int) -> int:
        """Return how many sequences of `tokens` fit beside the weights."""
        works = self.launches(bits)
        weights = sum(one.count * one.work.whole_bytes for one in works) + self.vocab * self.hidden * HALF
        cached = sum(one.count * one.work.cached_bytes for one in works)
        return int(FULL_SHARE * (memory_bytes - weights) / (cached * tokens))

    def _product(self, rows: int, columns: int, bits: int) -> LaunchWork:
        return LaunchWork(
            INT8 if bits == EIGHT else F32,
            row_flops=2.0 * rows * columns,
            whole_bytes=rows * columns * bits / 8,
            row_bytes=float(HALF * (rows + columns)),
        )


@dataclass(frozen=True)
class Figure:
    """A published rate or time and the predicted one; `measured` in the unit that it was published in."""

    source: str
    device: str
    what: str
    unit: str
    measured: float
    predicted: float

    @property
    def error(self) -> float:
        """Return predicted / measured - 1."""
        return self.predicted / self.measured - 1


def figures(path: Path = FIGURES) -> Iterator[Figure]:
    """Yield every published figure with its prediction."""
    found = tomllib.loads(path.read_text())
    shapes = {row["name"]: Shape(**row) for row in found["shape"]}
    peaks = {row["device"]: row["f8_flops_per_s"] for row in found["peak"]}
    for source in found["source"]:
        for row in source["figures"]:
            yield _figure(source["name"], row, shapes[row["shape"]], peaks)


def _figure(source: str, row: Mapping[str, Any], shape: Shape, peaks: Mapping[str, float]) -> Figure:
    machine = machine_of(named_device(row["device"]))
    host = machine.host
    host = replace(host, int8_flops_per_s=peaks.get(row["device"], host.int8_flops_per_s))
    launches = shape.launches(row["bits"])
    model = replace(machine, host=host).model(StepWorks(launches, launches, 0, EVERY_CHUNK))
    prompt, output = row["prompt"], row["output"]
    batch = row.get("batch") or shape.most(host.memory_bytes, row["bits"], prompt + output)
    read_s = model.step_s(Step(batch, prompt, prompt))
    many = f"batch {batch}" if "batch" in row else "as many as fit"
    what = f"{shape.name}, {row['bits']} bits, {many}, {prompt} + {output} tokens"
    if "ttft_s" in row:
        return Figure(source, row["device"], what, "ms to the first token", row["ttft_s"] * 1e3, read_s * 1e3)
    if "token_s" in row:
        token_s = _decoding_s(model, batch, prompt, output) / (output - 1)
        return Figure(source, row["device"], what, "ms a token", row["token_s"] * 1e3, token_s * 1e3)
    rate = batch * output / (read_s + _decoding_s(model, batch, prompt, output))
    return Figure(source, row["device"], what, "tokens/s", row["tokens_per_s"], rate)


def _decoding_s(model: StepModel, batch: int, prompt: int, output: int) -> float:
    """Return the time of all tokens after the first; time is linear in context between roofs."""
    every = max(1, output // 32)
    steps = range(prompt + 1, prompt + output, every)
    return sum(model.step_s(Step(batch, context)) for context in steps) / len(steps) * (output - 1)


def _moving(size: float) -> LaunchWork:
    return LaunchWork(row_bytes=float(size))


def table() -> str:
    """Return the figures as Markdown."""
    found = list(figures())
    lines = ["| published by | device | what | unit | published | predicted | error |"]
    lines += ["|---|---|---|---|--:|--:|--:|", *map(_line, found)]
    errors = [abs(one.error) for one in found]
    sources = tomllib.loads(FIGURES.read_text())["source"]
    mean, worst = sum(errors) / len(errors), max(errors)
    lines += ["", f"Error: {mean:.0%} on average, {worst:.0%} at worst. Sources:", ""]
    lines += [f"- {source['name']}, {source['published']}: <{source['url']}>" for source in sources]
    return "\n".join(lines) + "\n"


def _line(one: Figure) -> str:
    measured, predicted = (units.figures(value) for value in (one.measured, one.predicted))
    numbers = f"{measured} | {predicted} | {one.error:+.0%}"
    return f"| {one.source} | {one.device} | {one.what} | {one.unit} | {numbers} |"


def main() -> None:
    """Print the table, or write it into the document."""
    parser = argparse.ArgumentParser(prog="python -m bench.published", description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"write the table into {DOCUMENT}")
    if not parser.parse_args().write:
        print(table())
        return
    before, _, rest = DOCUMENT.read_text().partition(BEGIN)
    DOCUMENT.write_text(before + BEGIN + table() + END + rest.partition(END)[2])


if __name__ == "__main__":
    main()

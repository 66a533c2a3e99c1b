"""Measure drafts: kind x task x batch, in turns, on prompts that nothing was trained on.

    python -m bench.speculation plain.tokc eagle.tokc medusa.tokc --out out/speculation.json

Every artifact runs without drafts and with the heads that it has; the first also with ngram and suffix, and
with `--draft-model`. Of each task and batch size a round has eight prompts or one batch; each batch is
answered by all kinds right after each other, greedily, in an order that turns, so that what else the machine
does meets all alike. Answers must be the same tokens as without drafts. A ratio is the median over batches of
rates that follow each other, beside it the quartiles; the first artifact runs a second time without drafts,
whose ratio says how far others can be trusted. `--gguf` adds llama.cpp with and without its prompt lookup,
one prompt at a time.
"""

import argparse
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tokc
from bench.__main__ import commit, machine, write
from bench.foreign import run
from bench.peers.environments import FOLDER
from tokc.heads.prompts import TASKS, Prompt, held_out_prompts
from tokc.runtime.artifact import Artifact
from tokc.runtime.engine import Engine
from tokc.runtime.sequence import Result

NONE, AGAIN, LLAMACPP = "none", "none again", "llama.cpp"
LOOKUPS = ("ngram", "suffix")
WARM_UP_TOKENS = 32
TURN_PROMPTS = 8


class Subject(NamedTuple):
    """An engine under measurement; `base` is the one without drafts that its rate is divided by."""

    name: str
    base: str
    engine: Engine


class Turn(NamedTuple):
    """One subject's answers to a batch of prompts: tokens and seconds, prompts included, and its drafts."""

    tokens: int
    seconds: float
    drafts: int
    verified: tuple[int, ...]
    accepted: tuple[int, ...]

    @property
    def tokens_per_s(self) -> float:
        """Return the rate."""
        return self.tokens / self.seconds


def subjects(artifacts: Sequence[Path], draft_model: Path | None, threads: int | None) -> list[Subject]:
    """Open an engine of each kind."""
    found = []
    for place, path in enumerate(artifacts):
        base = NONE if place == 0 else f"{NONE} ({path.stem})"
        kinds: dict[str, dict[str, Any]] = {base: {"method": NONE}}
        if place == 0:
            kinds |= {AGAIN: {"method": NONE}} | {name: {"method": name} for name in LOOKUPS}
        if place == 0 and draft_model is not None:
            kinds["draft_model"] = {"method": "draft_model", "model": str(draft_model)}
        heads = Artifact.open(path, verify=False).manifest.draft
        if heads is not None:
            kinds[f"{heads.kind} ({path.stem})"] = {"method": heads.kind}
        for name, config in kinds.items():
            found.append(Subject(name, base, tokc.load(path, threads=threads, speculative_config=config)))
    return found


def tokens_of(engine: Engine, prompt: Prompt) -> list[int]:
    """Return a prompt's tokens, as a conversation where it is one."""
    if prompt.chat and engine.chat_template is not None:
        return engine.chat_prompt(prompt.messages)
    return engine.tokenizer.encode(prompt.text)


def answered(engine: Engine, prompts: list[list[int]], tokens: int) -> tuple[Turn, list[Result]]:
    """Answer all prompts together."""
    counts = engine.counters.drafts
    before = counts.drafts, counts.verified_at[:], counts.accepted_at[:]
    began_s = time.perf_counter()
    results = engine.generate_all(prompts, max_tokens=tokens)
    seconds = time.perf_counter() - began_s
    made = sum(result.usage.completion_tokens for result in results)
    grown = [
        _grown(old, new)
        for old, new in zip(before[1:], (counts.verified_at, counts.accepted_at), strict=True)
    ]
    return Turn(made, seconds, counts.drafts - before[0], *grown), results


def _grown(before: list[int], after: list[int]) -> tuple[int, ...]:
    return tuple(now - (before[at] if at < len(before) else 0) for at, now in enumerate(after))


def measured(
    found: Sequence[Subject], tasks: Sequence[str], batches: Sequence[int], rounds: int, tokens: int
) -> dict[tuple[str, str, int], list[Turn]]:
    """Return every subject's turns by task and batch size."""
    turns: dict[tuple[str, str, int], list[Turn]] = defaultdict(list)
    for one in found:
        one.engine.generate_all([[1, 2, 3]], max_tokens=WARM_UP_TOKENS, ignore_eos=True)
    for seed in range(rounds):
        for batch in batches:
            for task in tasks:
                made = turn(found, task, batch, seed, tokens)
                for name, own in made.items():
                    turns[name, task, batch] += own
                print(f"round {seed + 1}: {task}, batch {batch}", file=sys.stderr)
    return turns


def turn(found: Sequence[Subject], task: str, batch: int, seed: int, tokens: int) -> dict[str, list[Turn]]:
    """Return every subject's answers to the same prompts, a batch at a time."""
    turns: dict[str, list[Turn]] = defaultdict(list)
    count = max(TURN_PROMPTS // batch, 1)
    for place in range(count):
        prompts = held_out_prompts(task, batch, seed=(seed * count + place) * 100 + batch)
        ids = [tokens_of(found[0].engine, prompt) for prompt in prompts]
        answers: dict[str, list[tuple[int, ...]]] = {}
        for at in range(len(found)):
            one = found[(at + seed * count + place) % len(found)]
            made, results = answered(one.engine, ids, tokens)
            turns[one.name].append(made)
            answers[one.name] = [result.token_ids for result in results]
        for one in found:
            assert answers[one.name] == answers[one.base], f"{one.name} changed the answers of {task}"
    return turns


def rows(found: Sequence[Subject], turns: dict[tuple[str, str, int], list[Turn]]) -> list[dict[str, Any]]:
    """Return a row for each kind, task and batch size; the ratio is the median over batches."""
    bases = {one.name: one.base for one in found}
    table = []
    for (name, task, batch), own in turns.items():
        base = turns[bases[name], task, batch]
        ratios = [one.tokens_per_s / other.tokens_per_s for one, other in zip(own, base, strict=True)]
        verified, accepted = (
            [sum(column) for column in zip(*_padded(rows_of), strict=True)]
            for rows_of in ([one.verified for one in own], [one.accepted for one in own])
        )
        drafts = sum(one.drafts for one in own)
        table.append(
            {
                "kind": name,
                "task": task,
                "batch": batch,
                "tokens_per_s": statistics.median(one.tokens_per_s for one in own),
                "ratio": statistics.median(ratios),
                "ratios": ratios,
                "drafts": drafts,
                "acceptance": sum(accepted) / max(sum(verified), 1),
                "acceptance_length": 1 + sum(accepted) / max(drafts, 1),
                "verified_at": verified,
                "accepted_at": accepted,
            }
        )
    return table


def _padded(rows_of: list[tuple[int, ...]]) -> list[list[int]]:
    longest = max(map(len, rows_of), default=0)
    return [[*row, *[0] * (longest - len(row))] for row in rows_of]


def llamacpp(
    gguf: Path, engine: Engine, tasks: Sequence[str], prompts: int, tokens: int, folder: Path
) -> list[dict[str, Any]]:
    """Return llama.cpp's rows on the prompts of batch 1, with and without its lookup."""
    program, table = str(FOLDER / "llamacpp" / "bin" / "python"), []
    for task in tasks:
        asked = [held_out_prompts(task, 1, seed=seed * 100 + 1)[0] for seed in range(prompts)]
        ids = [tokens_of(engine, prompt) for prompt in asked]
        path = folder / "llamacpp.prompts.json"
        path.write_text(json.dumps({"prompts": ids, "tokens": tokens, "stop": sorted(engine.eos_ids)}))
        threads = str(getattr(engine.executor, "threads", 1))
        command = [program, "-m", "bench.peers.llamacpp_speculation", str(gguf), threads, str(path)]
        figures = run(command).result
        path.unlink()
        for kind, found in figures.items():
            table.append(
                {
                    "kind": f"{LLAMACPP} {kind}",
                    "task": task,
                    "batch": 1,
                    "tokens_per_s": found["tokens_per_s"],
                    "ratio": found["tokens_per_s"] / figures[NONE]["tokens_per_s"],
                    "acceptance": found["held"] / max(found["verified"], 1),
                }
            )
    return table


def markdown(table: Sequence[dict[str, Any]]) -> str:
    """Return the rows as a table."""
    lines = [
        "| kind | task | batch | tokens/s | ratio | accepted | tokens a draft |",
        "|:--|:--|--:|--:|--:|--:|--:|",
    ]
    for row in table:
        length = f"{row['acceptance_length']:.2f}" if "acceptance_length" in row else ""
        spread = f" ({_quartiles(row['ratios'])})" if "ratios" in row else ""
        ratio = f"{row['ratio']:.2f}{spread}"
        figures = f"{row['tokens_per_s']:.1f} | {ratio} | {row['acceptance']:.0%} | {length}"
        lines.append(f"| {row['kind']} | {row['task']} | {row['batch']} | {figures} |")
    return "\n".join(lines)


def _quartiles(ratios: list[float]) -> str:
    low, _, high = statistics.quantiles(ratios, n=4, method="inclusive") if ratios[1:] else ratios * 3
    return f"{low:.2f}–{high:.2f}"


def arguments() -> argparse.Namespace:
    """Return what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("artifacts", nargs="+", type=Path)
    parser.add_argument("--draft-model", type=Path)
    parser.add_argument(
        "--gguf", type=Path, help="for llama.cpp: python -m bench.peers.environments llamacpp"
    )
    parser.add_argument("--task", action="append", choices=TASKS)
    parser.add_argument("--batch", action="append", type=int)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, default=Path("out/speculation.json"))
    return parser.parse_args()


def main() -> None:
    """Measure, print and write."""
    asked = arguments()
    tasks, batches = asked.task or TASKS, asked.batch or (1, 4, 16)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    found = subjects(asked.artifacts, asked.draft_model, asked.threads)
    table = rows(found, measured(found, tasks, batches, asked.rounds, asked.tokens))
    if asked.gguf is not None:
        table += llamacpp(asked.gguf, found[0].engine, tasks, asked.rounds, asked.tokens, asked.out.parent)
    for one in found:
        one.engine.close()
    print(markdown(table))
    settings = {"rounds": asked.rounds, "tokens": asked.tokens, "threads": asked.threads}
    write(asked.out, {"rows": table, "settings": settings, "commit": commit(), "machine": machine()})


if __name__ == "__main__":
    main()

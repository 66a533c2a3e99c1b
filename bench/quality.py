"""Measure every quantization method on SmolLM2: `python -m bench.quality --out out/bench`.

Each row is built from the same plain f32 weights, scored on its compiled kernels beside the imported model
(in onnxruntime where no kernel runs it), and timed in turns with the others. What is there already is kept,
so that a run that ended goes on; `--only NAME ...` measures some rows, `--again` those that are there, too.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

import tokc
from bench.__main__ import commit, machine, write
from bench.models import smollm2_q4_1
from bench.quality_peers import library_model, peer_model
from bench.quality_rows import PEER, ROWS, Row
from bench.quality_text import markdown
from tokc.compiler import Request, build
from tokc.cost.measure import Prompts, run_once
from tokc.errors import TargetRefused
from tokc.evaluation import cut, divergence_of, opened, perplexity_of
from tokc.importers import import_model
from tokc.instruments import Instruments
from tokc.pipeline import Pipeline
from tokc.quality.compiled import ArtifactRun
from tokc.quality.perplexity import F32, I64, Answers, score
from tokc.quality.running import ProgramRun
from tokc.quality.text import evaluation_text
from tokc.runtime.artifact import Artifact, folder_bytes

SCHEMA_VERSION = 1
EXPORT = [sys.executable, "-c", "from tokc.cli.app import main; main()", "export"]
CONTEXT, PROMPT_TOKENS, OUTPUT_TOKENS = 1024, 128, 64
Rows = dict[str, dict[str, Any]]


class Kept:
    """Answers of the reference, computed once and kept in a file of f32[windows, tokens, vocab]."""

    def __init__(self, path: Path, model: Path, windows: I64, vocab: int) -> None:
        """Take the file at `path`, or let `model` answer and write it aside first."""
        self.vocab_size, self._windows = vocab, windows
        length = windows.shape[1]
        shape = (len(windows), length - length // 2, vocab)
        if not path.exists():
            partial = path.with_suffix(".partial")
            answers = np.memmap(partial, np.float32, "w+", shape=shape)
            with ProgramRun(import_model(model)) as run:
                for index, ids in enumerate(windows):
                    print(f"reference, window {index + 1} of {len(windows)}", flush=True)
                    answers[index] = run.answers(ids, length // 2)
            answers.flush()
            partial.rename(path)
        self._answers = np.memmap(path, np.float32, "r", shape=shape)

    def answers(self, ids: I64, first: int) -> F32:
        """Return the kept answers of one of the windows."""
        assert first == len(ids) // 2, "the second halves are what was kept"
        (index,) = (at for at, window in enumerate(self._windows) if np.array_equal(window, ids))
        return np.asarray(self._answers[index])


def plain_model(folder: Path) -> Path:
    """Return SmolLM2 as a folder of plain f32 weights, each exactly what the packaged file's grid holds."""
    path = folder / "SmolLM2-135M-Instruct-f32"
    if not path.exists():
        wanted = [str(smollm2_q4_1()), "--to", "hf", "--dtype", "f32", "--out", str(path)]
        subprocess.run([*EXPORT, *wanted], check=True)
    return path


def measured(row: Row, model: Path, folder: Path, windows: I64, kept: Kept) -> dict[str, Any]:
    """Build a row and score it."""
    start_s = time.perf_counter()
    with ExitStack() as stack:
        subject, sizes = made(row, model, folder, stack)
        build_s = time.perf_counter() - start_s
        scores = score(windows, subject, kept)
    return {
        **asdict(row),
        **sizes,
        "build_s": round(build_s, 1),
        "perplexity": asdict(perplexity_of(scores.nll)),
        "divergence": asdict(divergence_of(scores, model.name)),
        "commit": commit(),
    }


def made(row: Row, model: Path, folder: Path, stack: ExitStack) -> tuple[Answers, dict[str, Any]]:
    """Return what answers for a row, and its sizes: an artifact, or a program that no kernel runs."""
    if row.passes.startswith(PEER):
        export = [*EXPORT, str(model), "--to", "gguf", "--dtype", "f32", "--out"]
        program = import_model(peer_model(row.passes, model, folder, export), CONTEXT)
        note = "scored in onnxruntime"
    else:
        out = folder / f"{row.name}.tokc"
        model = library_model(row, model, folder) if row.library else model
        try:
            build(Request(model, passes=row.passes, context=CONTEXT, check=False), out, lambda _: None)
        except TargetRefused as refused:
            passes = row.passes.partition(",kv-layout")[0]
            program = Instruments(check=False).run(Pipeline.parse(passes), import_model(model, CONTEXT))
            note = refused.problem
        else:
            artifact = Artifact.open(out)
            sizes = {"weight_bytes": artifact.manifest.weight_bytes, "bytes": folder_bytes(out)}
            return stack.enter_context(ArtifactRun(artifact)), sizes
    return stack.enter_context(ProgramRun(program)), {
        "weight_bytes": program.weight_bytes(),
        "no_kernel": note,
    }


def time_in_turns(rows: Rows, folder: Path, rounds: int) -> None:
    """Add to each row that has an artifact its decode rate alone, in tokens a second, round after round."""
    rates: dict[str, list[float]] = {}
    for number in range(rounds):
        for name in rows:
            path = folder / f"{name}.tokc"
            if not path.exists():
                continue
            with tokc.load(path) as engine:
                prompts = Prompts(engine.executor.vocab_size, PROMPT_TOKENS)
                engine.generate_all(prompts.take(1), max_tokens=8, ignore_eos=True)
                run = run_once(engine, prompts.take(1), OUTPUT_TOKENS)
            rates.setdefault(name, []).append(1.0 / run.tpot_s)
            print(f"round {number + 1} of {rounds}, {name}: {rates[name][-1]:.0f} tokens/s", flush=True)
    for name, found in rates.items():
        rows[name]["decode_tokens_per_s"] = {
            "median": statistics.median(found),
            "min": min(found),
            "max": max(found),
            "rounds": len(found),
        }


def content(rows: Rows, windows: I64) -> dict[str, Any]:
    """Return the file, rows in the order of the table."""
    ordered = {row.name: rows[row.name] for row in ROWS if row.name in rows}
    return {
        "schema_version": SCHEMA_VERSION,
        "model": smollm2_q4_1().name,
        "windows": list(windows.shape),
        "rows": ordered,
        "machine": machine(),
    }


def arguments() -> argparse.Namespace:
    """Return what the command line asks for."""
    known = [row.name for row in ROWS]
    parser = argparse.ArgumentParser(prog="python -m bench.quality", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    parser.add_argument(
        "--only", nargs="+", choices=known, metavar="ROW", default=known, help=", ".join(known)
    )
    parser.add_argument("--again", action="store_true", help="measure rows that are there, too")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3, help="0 leaves speed out")
    parser.add_argument("--markdown", type=Path, help="write the table as a page")
    return parser.parse_args()


def earlier(path: Path, shape: Sequence[int]) -> Rows:
    """Return the rows of an earlier run over as many windows whose pipelines are still the same."""
    found = json.loads(path.read_text()) if path.exists() else {}
    if found.get("schema_version") != SCHEMA_VERSION:
        return {}
    if found["windows"] != list(shape):
        count, length = found["windows"]
        raise SystemExit(
            f"error: '{path}' has rows over {count * length} tokens, not {shape[0] * shape[1]}\n"
            f"hint: --tokens {count * length}, or another --out"
        )
    passes = {row.name: row.passes for row in ROWS}
    return {name: row for name, row in found["rows"].items() if row["passes"] == passes.get(name)}


def main() -> None:
    """Measure the rows that were asked for; write quality.json as rows finish."""
    asked = arguments()
    folder, path = asked.out / "quality", asked.out / "quality.json"
    folder.mkdir(parents=True, exist_ok=True)
    model = plain_model(folder)
    with ExitStack() as stack:
        facts = opened(model, stack, None, print)
        windows, vocab = cut(evaluation_text(), facts, asked.tokens), facts.run.vocab_size
    kept = Kept(folder / f"reference-{len(windows)}x{windows.shape[1]}.f32", model, windows, vocab)
    rows = earlier(path, windows.shape)
    for row in (row for row in ROWS if row.name in asked.only and (asked.again or row.name not in rows)):
        print(f"{row.name}: {row.passes}", flush=True)
        rows[row.name] = measured(row, model, folder, windows, kept)
        write(path, content(rows, windows))
        figures = rows[row.name]["divergence"]
        print(
            f"  ratio {figures['ppl_ratio']['figure']:.4f}, KL {figures['kl_mean']['figure']:.5f}", flush=True
        )
    timed = {name: row for name, row in rows.items() if name in asked.only}
    time_in_turns(timed, folder, asked.rounds)
    found = content(rows, windows)
    write(path, found)
    print(markdown(found))
    if asked.markdown is not None:
        asked.markdown.write_text(markdown(found), encoding="utf-8")


if __name__ == "__main__":
    main()

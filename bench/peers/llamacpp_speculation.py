"""llama.cpp on given prompts, one at a time: without drafts, and with the prompt lookup of llama-cpp-python.

Reads a file of JSON, {"prompts": [[token, ...], ...], "tokens": n, "stop": [token, ...]}, and prints tokens a
second of both, prompts included, with how many drafted tokens were verified and held.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

from bench.peers.llamacpp_side import LlamaCpp
from bench.spans import Span, Tokens

DRAFT_TOKENS = 10  # llama-cpp-python's default
Drafter = Callable[[Tokens], Tokens]


def nothing(tokens: Tokens) -> Tokens:
    """Draft nothing."""
    return tokens[:0]


def answer(
    side: LlamaCpp, prompt: list[int], most: int, stop: set[int], draft: Drafter
) -> tuple[int, int, int]:
    """Return tokens made, drafted tokens verified and those that held."""
    text = [*prompt, int(side.start(np.array([prompt], np.int32))[0])]
    verified = held = 0
    while len(text) - len(prompt) < most and text[-1] not in stop:
        guess = draft(np.array(text, np.intc))[: most - (len(text) - len(prompt)) - 1]
        position = len(text) - 1
        found = side.verify(np.array([text[-1], *guess], np.int32), position).tolist()
        agree = next((at for at, token in enumerate(guess) if token != found[at]), len(guess))
        ended = next((at for at, token in enumerate(found[:agree]) if token in stop), agree)
        verified, held = verified + len(guess), held + ended
        text += found[: ended + 1]
        llama_cpp.llama_memory_seq_rm(side.memory, 0, len(text) - 1, -1)
    return len(text) - len(prompt), verified, held


def measured(side: LlamaCpp, asked: dict[str, Any], draft: Drafter) -> dict[str, float]:
    """Return the figures of all prompts, one after the other."""
    began_s = time.perf_counter()
    counts = [answer(side, one, asked["tokens"], set(asked["stop"]), draft) for one in asked["prompts"]]
    seconds = time.perf_counter() - began_s
    made, verified, held = map(sum, zip(*counts, strict=True))
    return {"tokens_per_s": made / seconds, "tokens": made, "verified": verified, "held": held}


def main() -> None:
    """Measure what the file asks for with the model."""
    model, threads, path = sys.argv[1:]
    asked = json.loads(Path(path).read_text())
    longest = max(map(len, asked["prompts"])) + asked["tokens"] + DRAFT_TOKENS
    side = LlamaCpp(model, Span("verify", prompt=longest, tokens=1, repeats=1), int(threads))
    measured(side, {**asked, "prompts": asked["prompts"][:1]}, nothing)
    lookup = LlamaPromptLookupDecoding(num_pred_tokens=DRAFT_TOKENS)
    print(json.dumps({"none": measured(side, asked, nothing), "lookup": measured(side, asked, lookup)}))


if __name__ == "__main__":
    quiet = llama_cpp.llama_log_callback(lambda _level, _text, _data: None)
    llama_cpp.llama_log_set(quiet, None)
    llama_cpp.llama_backend_init()
    main()

"""SmolLM2 through XLA on this machine's processor: the program's own tokens, from the server too."""

import json
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

import tokc
from tests.conftest import repository
from tokc import compiler
from tokc.quality.divergence import logits
from tokc.runtime.server.app import create_app
from tokc.targets.base import Precision

pytestmark = pytest.mark.slow

PROMPTS = ("The capital of France is", "Water boils at", "def fibonacci(n):")
NEW_TOKENS = 12


def test_the_tokens_are_the_programs_and_the_server_says_the_same(smollm2_gguf: Path, tmp_path: Path) -> None:
    precision = Precision("int4", 32, "f16")
    request = compiler.Request(smollm2_gguf, target="xla:cpu", precision=precision, context=256, check=False)
    built = compiler.build(request, tmp_path / "smollm2.tokc")
    with tokc.load(built.artifact) as engine:
        found = engine.generate_all(list(PROMPTS), max_tokens=NEW_TOKENS, ignore_eos=True, temperature=0.0)
        for prompt, result in zip(PROMPTS, found, strict=True):
            ids = engine.tokenizer.encode(prompt)
            tokens = list(result.token_ids)
            # The likeliest token after each place; the same tokens before it make this the greedy text.
            likeliest = logits(built.program, [ids + tokens])[0].argmax(-1)
            assert likeliest[len(ids) - 1 : -1].tolist() == tokens
        transport = httpx.ASGITransport(app=create_app(engine))
        answer = completion(transport, PROMPTS[0])
    assert answer == found[0].text


def completion(transport: httpx.ASGITransport, prompt: str) -> str:
    """Return the text that the server completes a prompt with."""
    import asyncio

    async def ask() -> str:
        async with httpx.AsyncClient(transport=transport, base_url="http://here", timeout=600) as client:
            body = {"model": "smollm2", "prompt": prompt, "max_tokens": NEW_TOKENS, "temperature": 0}
            answer = await client.post("/v1/completions", json={**body, "ignore_eos": True})
            return str(answer.raise_for_status().json()["choices"][0]["text"])

    return asyncio.run(ask())


def test_the_commands_build_for_a_tpu_and_inspect_it(smollm2_gguf: Path, tmp_path: Path) -> None:
    pytest.importorskip("libtpu")
    out = tmp_path / "smollm2.tokc"
    program = "from tokc.cli.app import main; main()"
    build = ["build", str(smollm2_gguf), "--target", "tpu:v5e-1", "--out", str(out), "--context", "256"]
    for arguments in ([*build, "--no-check"], ["inspect", str(out)], ["verify", str(out)]):
        command = [sys.executable, "-c", program, *arguments]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, cwd=repository(), env={**os.environ}
        )
        assert done.returncode == 0, done.stderr
        if arguments[0] == "inspect":
            assert "Pallas kernel" in done.stdout
            assert "not measured: no TPU ran it" in done.stdout
    index = json.loads((out / "kernels" / "xla.json").read_text())
    assert all(bucket["temporary_bytes"] < 64 << 20 for bucket in index["buckets"])

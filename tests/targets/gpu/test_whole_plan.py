"""Whole artifacts for a GPU, run by the runtime's own executor with each kernel in Triton's interpreter.

Nothing but the driver differs from a real device: the same plan, buffers, tiles, grids and packed parameters.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.runtime.gpu_drivers import InterpreterDriver, RecordingDriver
from tests.targets.gpu.interpreted import products_in_order
from tests.tiny_models import tiny_folder
from tokc.compiler import Build, Request, build, precision
from tokc.quality.divergence import logits
from tokc.runtime.artifact import Artifact
from tokc.runtime.executors.base import Batch
from tokc.runtime.executors.gpu import GpuExecutor
from tokc.targets.base import Limits
from tokc.targets.gpu.emit import emit

CONTEXT = 64
PROMPTS = (
    np.array([5, 17, 3, 60, 8, 22, 41, 9, 33, 2, 71, 14, 15, 90, 4, 6, 50, 51, 7]),
    np.array([11, 40, 2]),
)
DECODED = 8
# (family, what differs from its tiny model, weights, cache, error): the program does not round to f16,
# nor to int8 in the cache.
CASES = {
    "llama-int4": ("llama", {"num_hidden_layers": 2}, "int4", "f16", 0.02),
    "qwen3-int8": ("qwen3", {"num_hidden_layers": 1}, "int8", "int8", 0.05),
    "gemma3-f16": (
        "gemma3",
        {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]},
        "f16",
        "f16",
        0.02,
    ),
    "mixtral-int4": ("mixtral", {"num_hidden_layers": 2}, "int4", "f16", 0.02),
    "qwen2_moe-int8": ("qwen2_moe", {"num_hidden_layers": 2}, "int8", "f16", 0.03),
    "qwen3_moe-f16": ("qwen3_moe", {"num_hidden_layers": 1}, "f16", "f16", 0.02),
}
EXPERTS = {"mixtral-int4", "qwen2_moe-int8", "qwen3_moe-f16"}


@dataclass(frozen=True)
class Case:
    """An artifact, how to run it, and how far it may be from its program."""

    built: Build
    error: float
    open: Callable[[Build], GpuExecutor]

    def executor(self) -> GpuExecutor:
        """Return an executor of its own, so that no cache holds what another run wrote."""
        return self.open(self.built)

    def require_the_programs_tokens(
        self, prompts: tuple[np.ndarray, ...] = PROMPTS, decoded: int = DECODED
    ) -> None:
        """Decode greedily and compare tokens and logits with the program's."""
        executor = self.executor()
        found = decode(executor, prompts, 32, decoded)
        executor.close()
        for prompt, rows in zip(prompts, found, strict=True):
            tokens = [int(row.argmax()) for row in rows]
            expected = logits(self.built.program, np.array([*prompt, *tokens[:-1]]))[0][len(prompt) - 1 :]
            error = np.abs(np.stack(rows) - expected).max() / np.abs(expected).max()
            assert error < self.error
            assert tokens == expected.argmax(axis=-1).tolist()

    def require_the_same_bits_alone(self, decoded: int) -> None:
        """Decode the first prompt beside the others and, in other chunks, alone."""
        whole, alone = self.executor(), self.executor()
        together = decode(whole, PROMPTS, 32, decoded)
        (single,) = decode(alone, PROMPTS[:1], 7, decoded)
        whole.close()
        alone.close()
        assert (np.stack(together[0]) == np.stack(single)).all()


def case_of(name: str, target: str, folder: Path, opener: Callable[[Build], GpuExecutor]) -> Case:
    """Build a case for a target."""
    family, changes, weights, kv, error = CASES[name]
    model = tiny_folder(family, folder / family, head_dim=32, **changes)
    asked = Request(model, target=target, precision=precision(weights, kv), context=CONTEXT, check=False)
    return Case(build(asked, folder / "model.tokc"), error, opener)


def interpreted(built: Build) -> GpuExecutor:
    """Return an executor whose kernels run in the interpreter."""
    _, kernels, _ = emit(built.program, "sm_80", Limits(context=CONTEXT))
    driver = InterpreterDriver({kernel.symbol: kernel for kernel in kernels})
    return GpuExecutor(Artifact.open(built.artifact), driver, kv_bytes=1 << 20)


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=[pytest.mark.slow] * (name in EXPERTS)) for name in CASES],
)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return case_of(request.param, "cuda:sm_80", tmp_path_factory.mktemp("model"), interpreted)


def decode(
    executor: GpuExecutor, prompts: tuple[np.ndarray, ...], chunk: int, decoded: int
) -> list[list[np.ndarray]]:
    """Return each sequence's logits: the prompt's last row, and greedy decoding's; all in ragged steps."""
    pages = -(-CONTEXT // executor.page_size)
    tables = np.arange(pages * len(prompts), dtype=np.int32).reshape(pages, len(prompts)).T[:, ::-1]
    waiting, done = [list(prompt) for prompt in prompts], [0] * len(prompts)
    found: list[list[np.ndarray]] = [[] for _ in prompts]
    while any(len(rows) <= decoded for rows in found):
        ids, positions, sequences, last = [], [], [], []
        for at, tokens in enumerate(waiting):
            part = tokens[done[at] : done[at] + chunk]
            ids += part
            positions += range(done[at], done[at] + len(part))
            sequences += [at] * len(part)
            done[at] += len(part)
            if done[at] == len(tokens) and len(found[at]) <= decoded:
                last.append((at, len(ids) - 1))
        int32 = [
            np.array(values, np.int32) for values in (ids, positions, sequences, [row for _, row in last])
        ]
        batch = Batch(*int32[:3], np.ascontiguousarray(tables), int32[3])
        answer = executor.step(batch).copy()
        for (at, _), row in zip(last, answer, strict=True):
            found[at].append(row)
            if len(found[at]) <= decoded:
                waiting[at].append(int(row.argmax()))
    return found


def test_prefill_and_decode_of_a_ragged_batch_give_the_programs_tokens(case: Case) -> None:
    case.require_the_programs_tokens()


def test_routed_and_shared_experts_give_the_programs_tokens(tmp_path: Path) -> None:
    model = tiny_folder("qwen2_moe", tmp_path / "model", head_dim=32, num_hidden_layers=1)
    asked = Request(model, target="cuda:sm_80", context=CONTEXT, check=False)
    built = build(asked, tmp_path / "model.tokc")
    steps = (PROMPTS[0][:18], PROMPTS[1][:2])  # a wide step and a narrow one
    Case(built, 0.02, interpreted).require_the_programs_tokens(steps, 1)


def test_the_chunk_and_the_company_change_no_bit(case: Case) -> None:
    with products_in_order():
        case.require_the_same_bits_alone(2)


def test_every_launch_packs_what_the_code_reads(case: Case) -> None:
    """The bytes of each launch against the parameter list of the PTX that was compiled."""
    executor = GpuExecutor(Artifact.open(case.built.artifact), driver := RecordingDriver(), kv_bytes=1 << 20)
    for count in (1, 1, 1, 24):
        span = np.arange(count, dtype=np.int32)
        table = np.arange(CONTEXT // executor.page_size, dtype=np.int32)[None]
        executor.step(Batch(span, span, np.zeros_like(span), table, span[-1:]))
    parameters = {
        path.stem: re.findall(r"\.param \.u64[^\n]*_param_\d+", path.read_text().split(")")[0])
        for path in (case.built.artifact / "kernels").glob("*.ptx")
    }
    assert driver.ran
    assert {launched.symbol for launched in driver.ran} == set(parameters)
    for launched in driver.ran:
        assert len(launched.buffer) == 8 * len(parameters[launched.symbol])
        assert launched.pointers[-2:] == [0, 0]
        assert all(pointer and pointer % 16 == 0 for pointer in launched.pointers[:-2])
    executor.close()


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    model = tiny_folder("llama", tmp_path / "llama", head_dim=32, num_hidden_layers=1)
    asked = Request(model, target="cuda:sm_90", context=CONTEXT, check=False)
    made = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        made.append(build(asked, tmp_path / name / "model.tokc").artifact)
    first, second = (json.loads((path / "manifest.json").read_text())["files"] for path in made)
    assert {name for name in first if first[name] != second.get(name)} == set()


def test_weights_and_activations_in_e4m3_give_the_programs_tokens(tmp_path: Path) -> None:
    model = tiny_folder("llama_bias", tmp_path / "llama", head_dim=32, num_hidden_layers=1)
    passes = (
        "fold-constants,eliminate-dead-code,fuse-linear,fuse-attention,fuse-qkv,fuse-gate-up,"
        "cast-weights{format=e4m3 activations=e4m3},fuse-add-rms-norm,kv-layout{page=16 dtype=f16},"
        "eliminate-dead-code"
    )
    asked = Request(model, target="cuda:sm_90", passes=passes, context=CONTEXT, check=False)
    built = build(asked, tmp_path / "model.tokc")
    plan, kernels, _ = emit(built.program, "sm_90", Limits(context=CONTEXT))
    families = [launch.kernel.split("_")[0] for launch in plan.launches if launch.steps != "wide"]
    assert families.count("fp8") == 5  # gate and up, whose biases keep them apart, read one rounding
    assert families.count("round") == 4
    driver = InterpreterDriver({kernel.symbol: kernel for kernel in kernels})
    case = Case(built, 0.05, lambda _: GpuExecutor(Artifact.open(built.artifact), driver, kv_bytes=1 << 20))
    case.require_the_programs_tokens((PROMPTS[0][:18], PROMPTS[1]), 1)

"""The least time that a step can take: for each kind of op, bytes over bandwidth or FLOPs over peak.

The work was counted when the artifact was built (`cost.json`), so that pricing it needs no compiler.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from tokc.cost import records
from tokc.cost.devices import Host

Bound = Literal["bandwidth", "compute"]

# Ops that read weights: their bytes stay when a step has more sequences. Those of all others grow with them.
WEIGHT_OPS = frozenset({"Linear", "QuantLinear", "MatMul"})
INT8_OPS = frozenset({"QuantLinear", "QuantMoeLinear"})
ATTENTION_OPS = frozenset({"PagedAttention", "Attention"})


@dataclass(frozen=True)
class OpWork:
    """The work of all nodes of one kind in a step.

    `every_expert_bytes` are those of the weights of all experts, 0 where there are none.
    """

    op: str
    count: int
    flops: float
    bytes: float
    every_expert_bytes: float = 0.0

    def weight_bytes(self, tokens: int) -> float:
        """Return the weights that `tokens` tokens read, where these are the bytes of one.

        Of experts those that are chosen, each as likely as any other.
        """
        if not self.every_expert_bytes:
            return self.bytes
        unread = max(0.0, 1.0 - self.bytes / self.every_expert_bytes)
        return self.every_expert_bytes * (1.0 - unread**tokens)


@dataclass(frozen=True)
class StepWork:
    """The work of one step: `tokens` of one sequence, each attending to `context` tokens."""

    tokens: int
    context: int
    ops: tuple[OpWork, ...]

    @property
    def bytes(self) -> float:
        """Return the bytes of all ops."""
        return sum(op.bytes for op in self.ops)

    @property
    def flops(self) -> float:
        """Return the FLOPs of all ops."""
        return sum(op.flops for op in self.ops)

    def at(self, *, sequences: int = 1, context: int | None = None) -> "StepWork":
        """Return the work of `sequences` such steps at once, at another context.

        Weights are read once for all; attention grows with the context; activations beside
        weights are left out.
        """
        length = self.context if context is None else context
        ops = tuple(self._scaled(op, sequences, length / self.context) for op in self.ops)
        return StepWork(self.tokens * sequences, length, ops)

    def _scaled(self, op: OpWork, sequences: int, longer: float) -> OpWork:
        factor = sequences * (longer if op.op in ATTENTION_OPS else 1.0)
        reads_weights = op.op in WEIGHT_OPS or op.every_expert_bytes > 0
        moved = op.weight_bytes(sequences) if reads_weights else op.bytes * factor
        return replace(op, flops=op.flops * factor, bytes=moved)


@dataclass(frozen=True)
class Work:
    """What `cost.json` holds: the work of one decoded token and of one prefill chunk."""

    decode: StepWork
    prefill: StepWork
    schema_version: int = 1

    def reading(self, *, batch: int, prompt: int) -> StepWork:
        """Return the least work of reading `batch` prompts of `prompt` tokens, in chunks as counted.

        FLOPs are those of the counted chunk in proportion. Weights are read once a chunk, a sequence's cache
        once; activations count no bytes, since those of a chunk stay in the cores' caches.
        """
        tokens = batch * prompt
        share, chunks = tokens / self.prefill.tokens, -(-tokens // self.prefill.tokens)
        longer = prompt / 2 / self.prefill.context  # a prompt's token attends to half of it on average
        decode = {op.op: op for op in self.decode.ops}
        ops = []
        for op in self.prefill.ops:
            flops, moved = op.flops * share, 0.0
            one = decode.get(op.op)
            if op.op in WEIGHT_OPS or op.every_expert_bytes:
                moved = (op.bytes if one is None else one.weight_bytes(self.prefill.tokens)) * chunks
            elif op.op in ATTENTION_OPS:
                seen = 0.0 if one is None else one.bytes
                flops, moved = flops * longer, seen * prompt / self.decode.context * batch
            ops.append(replace(op, flops=flops, bytes=moved))
        return StepWork(tokens, prompt, tuple(ops))


@dataclass(frozen=True)
class OpTime:
    """The least seconds for one kind of op, and what bounds them."""

    op: str
    seconds: float
    bound: str


@dataclass(frozen=True)
class Prediction:
    """The least seconds of a step on a machine."""

    seconds: float
    ops: tuple[OpTime, ...]

    @property
    def bandwidth_share(self) -> float:
        """Return the share of the time that is bound by bytes."""
        return sum(op.seconds for op in self.ops if op.bound == "bandwidth") / self.seconds


def read_work(artifact: Path) -> Work:
    """Read the work of an artifact.

    Raises: TokcError if `cost.json` is missing or damaged.
    """
    return records.read(Work, artifact / "cost.json")


def predict(work: StepWork, host: Host) -> Prediction:
    """Return the least time of a step on `host`."""
    times = tuple(_op_time(op, host) for op in work.ops)
    return Prediction(sum(time.seconds for time in times), times)


@dataclass(frozen=True)
class Answers:
    """The least time for `batch` answers of `output` tokens: all prompts first, then a token each a step."""

    batch: int
    output: int
    prefill_s: float
    decode: Prediction

    @property
    def tokens_per_s(self) -> float:
        """Return output tokens a second, prefill included."""
        return self.batch * self.output / (self.prefill_s + (self.output - 1) * self.decode.seconds)


def predict_answers(work: Work, host: Host, batch: int, prompt: int, output: int) -> Answers:
    """Return the least time to answer `batch` prompts; a decode step is that in the middle of the answers."""
    prefill_s = predict(work.reading(batch=batch, prompt=prompt), host).seconds
    decode = predict(work.decode.at(sequences=batch, context=prompt + output // 2), host)
    return Answers(batch, output, prefill_s, decode)


def error(predicted: float, measured: float) -> float:
    """Return the relative error of a prediction, predicted / measured - 1."""
    return predicted / measured - 1.0


def _op_time(op: OpWork, host: Host) -> OpTime:
    """Return the time of all nodes of one kind; a launch takes what an empty kernel does, and then works."""
    peak = host.int8_flops_per_s if op.op in INT8_OPS else host.f32_flops_per_s
    seconds: Mapping[Bound, float] = {
        "bandwidth": op.bytes / host.read_bytes_per_s,
        "compute": op.flops / peak,
    }
    bound = max(seconds, key=lambda name: seconds[name])
    return OpTime(op.op, seconds[bound] + op.count * host.launch_s, bound)

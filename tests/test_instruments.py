"""What looks on while a pipeline runs."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx_ir as ir
import pytest

from tests.passes.tiny import tiny_program
from tokc.differential import DifferentialCheck
from tokc.errors import PassFailed, VerifyFailed
from tokc.instruments import DumpIr, Instruments, Ledger, PrintAfter, Timer, VerifyEach
from tokc.ir import text
from tokc.ir.program import Program
from tokc.passes.kv_layout import KvLayout
from tokc.passes.quantize_weights import QuantizeWeights
from tokc.pipeline import Pipeline


@dataclass(frozen=True)
class Scale:
    """Scale a weight: a pass that changes the answers."""

    name: ClassVar[str] = "scale"
    exact: ClassVar[bool] = True
    by: float = 1.0

    def run(self, program: Program) -> Program:
        """Scale the output projection."""
        copy = program.copy()
        value = copy.graph.initializers["o.weight"]
        assert value.const_value is not None
        value.const_value = ir.tensor(value.const_value.numpy() * np.float32(self.by), name="o.weight")
        return copy


@dataclass(frozen=True)
class Keep:
    """Match nothing."""

    name: ClassVar[str] = "keep"
    exact: ClassVar[bool] = True

    def run(self, program: Program) -> Program:
        """Return the same program."""
        return program


@dataclass(frozen=True)
class Break(Keep):
    """Leave a program that breaks the rules of the IR."""

    name: ClassVar[str] = "break"

    def run(self, program: Program) -> Program:
        """Name an op that does not exist."""
        copy = program.copy()
        for node in copy.graph:
            if node.op_type == "GatedActivation":
                node.op_type = "Nonsense"
        return copy


PIPELINE = Pipeline((Keep(), QuantizeWeights(bits=8), KvLayout(page=4, dtype="f16")))


def test_each_pass_that_changed_something_is_dumped_and_loads_back(tmp_path: Path) -> None:
    dump = DumpIr(tmp_path / "dump")
    made = PIPELINE.run(tiny_program(), [dump])
    assert [path.stem for path in dump.written] == ["000_imported", "002_quantize-weights", "003_kv-layout"]
    again = text.load_dump(dump.written[-1])
    assert (again.form, again.kv, again.config) == (made.form, made.kv, made.config)
    assert text.render(again) == text.render(made)


def test_programs_are_printed_after_the_passes_named() -> None:
    lines: list[str] = []
    PIPELINE.run(tiny_program(), [PrintAfter(lines.append, ["kv-layout"])])
    assert lines[0] == "// after pass 3 of 3, kv-layout{page=4 dtype=f16}"
    assert "PagedAttention" in lines[1]
    assert len(lines) == 2


def test_every_pass_that_changed_something_is_printed_when_none_is_named() -> None:
    lines: list[str] = []
    PIPELINE.run(tiny_program(), [PrintAfter(lines.append)])
    assert [line.split(", ")[1].split("{")[0] for line in lines if line.startswith("//")] == [
        *("quantize-weights", "kv-layout"),
    ]


def test_every_pass_is_timed() -> None:
    timer = Timer()
    PIPELINE.run(tiny_program(), [timer])
    assert [spec.split("{")[0] for spec, _ in timer.seconds] == ["keep", "quantize-weights", "kv-layout"]
    assert all(seconds >= 0 for _, seconds in timer.seconds)


def test_a_pass_that_breaks_the_rules_is_caught_and_named() -> None:
    with pytest.raises(VerifyFailed) as caught:
        Pipeline((Keep(), Break())).run(tiny_program(), [VerifyEach()])
    assert "pass 2 of 2, break, broke the program" in str(caught.value)


def test_an_exact_pass_that_changes_the_answers_is_caught() -> None:
    with pytest.raises(
        PassFailed, match=r"pass 2 of 3, scale, changed the answers: its largest logit"
    ) as caught:
        Pipeline((Scale(by=1.0), Scale(by=1.01), Keep())).run(tiny_program(), [DifferentialCheck()])
    assert caught.value.where == "scale{by=1.01}"


def test_answers_that_are_not_numbers_never_pass() -> None:
    for pass_ in (Scale(by=float("nan")), replace(Scale(by=float("nan")))):
        with pytest.raises(PassFailed, match="nan"):
            Pipeline((pass_,)).run(tiny_program(), [DifferentialCheck()])


@dataclass(frozen=True)
class Rough(Scale):
    """A pass that may change the answers a little."""

    name: ClassVar[str] = "rough"
    exact: ClassVar[bool] = False
    max_kl: float = 1e-3


def test_a_lossy_pass_is_held_to_the_bound_that_it_states() -> None:
    check = DifferentialCheck()
    Pipeline((Rough(by=1.01),)).run(tiny_program(), [check])
    assert 0 < check.measured[1].kl_mean < 1e-3
    with pytest.raises(PassFailed, match="mean KL to the program before it, in nats, is"):
        Pipeline((Rough(by=3.0),)).run(tiny_program(), [DifferentialCheck()])


def test_the_ledger_records_sizes_prices_and_answers() -> None:
    instruments = Instruments()
    instruments.run(PIPELINE, tiny_program())
    keep, quantize, layout = instruments.ledger
    assert (keep.changed, keep.exact, keep.kl_mean, keep.check_seconds) == (False, True, None, None)
    assert quantize.changed
    assert not quantize.exact
    assert quantize.kl_mean is not None
    assert 0 < quantize.kl_mean < QuantizeWeights(bits=8).max_kl
    assert quantize.weight_bytes_after < quantize.weight_bytes_before / 3
    assert quantize.bytes_after < quantize.bytes_before
    assert quantize.perplexity_before != quantize.perplexity_after == layout.perplexity_before
    assert quantize.mean_abs_logit_diff is not None
    assert quantize.max_abs_logit_diff is not None
    assert 0 < quantize.mean_abs_logit_diff < quantize.max_abs_logit_diff
    assert layout.nodes_after < layout.nodes_before == quantize.nodes_after
    assert layout.pass_spec.startswith("kv-layout{page=4 ")
    assert instruments.final is not None
    assert instruments.final.top1_agree > 0.9
    assert instruments.final.reference_perplexity == quantize.perplexity_before
    assert instruments.final.ppl_ratio == pytest.approx(1, abs=0.05)


def test_the_ledger_is_json_and_the_same_for_the_same_build() -> None:
    texts = []
    for _ in range(2):
        instruments = Instruments()
        instruments.run(PIPELINE, tiny_program())
        texts.append(json.dumps([entry.to_json() for entry in instruments.ledger]))
    assert texts[0] == texts[1]
    assert [entry["changed"] for entry in json.loads(texts[0])] == [False, True, True]


def test_without_the_check_nothing_is_compared() -> None:
    instruments = Instruments(check=False)
    instruments.run(Pipeline((Scale(by=2.0),)), tiny_program())
    (entry,) = instruments.ledger
    assert (entry.changed, entry.max_abs_logit_diff) == (True, None)
    assert instruments.final is None


def test_a_program_too_large_to_check_is_said_to_be_unchecked() -> None:
    check = DifferentialCheck(max_elements=1000)
    ledger = Ledger(check)
    Pipeline((Scale(by=2.0),)).run(tiny_program(), [check, ledger])
    (note,) = ledger.entries[0].notes
    assert note.startswith("not compared: ")


def test_progress_is_told_pass_by_pass() -> None:
    said: list[str] = []
    Instruments(check=False, progress=said.append).run(PIPELINE, tiny_program())
    assert said[0] == "pass 1 of 3, keep: nothing to do"
    assert said[1].startswith("pass 2 of 3, quantize-weights: ")

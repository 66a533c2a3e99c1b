"""Bits by weight: the least sum of errors within a size."""

from dataclasses import replace
from itertools import product

import numpy as np
import onnx_ir as ir
import pytest

from tests.passes.tiny import VOCAB, tiny_program
from tokc.errors import PassFailed, TokcError
from tokc.ir.program import Program
from tokc.passes.quantization.allocation import Choice, allocate, described
from tokc.passes.quantize_weights import QuantizeWeights
from tokc.pipeline import Pipeline
from tokc.quality.calibration import Calibration, calibrating
from tokc.quality.divergence import divergence, logits

IDS = np.random.default_rng(2).integers(0, VOCAB, (6, 40))
ON = Calibration(ids=IDS)


def _choices(seed: int) -> dict[str, list[Choice]]:
    random, choices = np.random.default_rng(seed), {}
    for name in "abcde":
        elements, weight = int(random.integers(1, 5)) * 100, random.random() * 10
        falls = np.sort(random.random(4))[::-1] * weight
        choices[name] = [
            Choice(bits, bits * elements, float(error))
            for bits, error in zip((2, 3, 4, 8), falls, strict=True)
        ]
    return choices


@pytest.mark.parametrize("seed", range(6))
def test_no_other_choice_of_at_most_the_same_size_errs_less(seed: int) -> None:
    choices = _choices(seed)
    smallest = sum(some[0].size for some in choices.values())
    largest = sum(some[-1].size for some in choices.values())
    for share in (0.0, 0.2, 0.5, 0.9, 1.0):
        budget = int(smallest + share * (largest - smallest))
        chosen = allocate(choices, budget)
        took = [next(one for one in choices[key] if one.bits == bits) for key, bits in chosen.items()]
        size, error = sum(one.size for one in took), sum(one.error for one in took)
        assert size <= budget
        best = min(
            sum(one.error for one in some)
            for some in product(*choices.values())
            if sum(one.size for one in some) <= size
        )
        # greedy along the hulls is the optimum of every size that it stops at short of the budget
        assert error <= best + max(one.error for some in choices.values() for one in some) * 0.35


def test_a_weight_whose_error_does_not_fall_stays_small() -> None:
    flat = [Choice(2, 200, 1.0), Choice(3, 300, 1.0), Choice(4, 400, 1.5)]
    steep = [Choice(2, 200, 9.0), Choice(4, 400, 0.1)]
    assert allocate({"flat": flat, "steep": steep}, 10_000) == {"flat": 2, "steep": 4}
    with pytest.raises(ValueError, match="more than the budget"):
        allocate({"flat": flat}, 199)
    assert described([4, 2, 4]) == "1 of 2 bits, 2 of 4 bits"


def _bits_a_weight(program: Program) -> float:
    """Return the bits of all linear weights but the head, scales counted, by what the tensors hold."""
    bits = weights = 0
    for node in program.graph:
        if node.op_type == "QuantLinear" and not node.outputs[0].is_graph_output():
            codes, scale = (value.const_value for value in node.inputs[1:3] if value is not None)
            assert codes is not None
            assert scale is not None
            width = node.attributes.get_int("bits", 0) or (4 if codes.dtype == ir.DataType.UINT4 else 8)
            bits += codes.size * width + scale.size * 16
            weights += codes.size
    return bits / weights


@pytest.mark.parametrize("budget", [2.6, 3.5, 4.25, 6.0])
def test_a_program_keeps_to_the_budget_and_uses_it(budget: float) -> None:
    with calibrating(ON):
        made = QuantizeWeights(bits="auto", budget=budget).run(tiny_program())
    assert 0.75 * budget < _bits_a_weight(made) <= budget
    assert "bits" in made.assets.calibration["bits"]


def test_what_is_chosen_is_nearer_than_the_same_bits_everywhere() -> None:
    program = tiny_program().copy()
    weight = program.graph.initializers["down.weight"]
    assert weight.const_value is not None
    # a layer that needs bits: one large weight a group leaves the others few levels
    array = np.array(weight.const_value.numpy())
    array[:, ::32] *= 40
    weight.const_value = ir.tensor(array, name="down.weight")
    reference, kl = logits(program, IDS), {}
    for options in ({"bits": 3}, {"bits": "auto", "budget": 3.5}):
        with calibrating(ON):
            made = QuantizeWeights(method="gptq", act_group=0, **options).run(program)  # type: ignore[arg-type]
        assert _bits_a_weight(made) <= 3.5
        kl[str(options["bits"])] = divergence(reference, logits(made, IDS)).kl_mean
    assert kl["auto"] < kl["3"]


def test_a_budget_that_holds_nothing_is_refused() -> None:
    with (
        calibrating(ON),
        pytest.raises(PassFailed, match=r"2\.25 bits a weight is less than the 2\.5 of 2-bit"),
    ):
        QuantizeWeights(bits="auto", budget=2.25).run(tiny_program())
    for text in ("bits=auto", "budget=4.25", "bits=4 budget=4.5"):
        with pytest.raises(TokcError, match="go together"):
            Pipeline.parse(f"quantize-weights{{{text}}}")
    (pass_,) = Pipeline.parse("quantize-weights{bits=auto budget=4.25 method=gptq}").passes
    assert isinstance(pass_, QuantizeWeights)
    assert (pass_.bits, pass_.budget, pass_.usual_bits) == ("auto", 4.25, 3)
    assert Pipeline.parse(str(Pipeline((pass_,)))).passes == (pass_,)


def test_an_estimate_has_the_bits_that_fit() -> None:
    with calibrating(replace(ON, shapes_only=True)):
        made = QuantizeWeights(bits="auto", budget=3.6).run(tiny_program())
    assert _bits_a_weight(made) == pytest.approx(3.5, abs=0.01)

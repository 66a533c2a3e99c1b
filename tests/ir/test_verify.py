"""A program that breaks a promise is refused, and the error names the node."""

import logging

import onnx_ir as ir
import pytest

from tokc.errors import VerifyFailed
from tokc.ir.text import parse
from tokc.ir.verify import verify

TEXT = """
<ir_version: 11, opset_import: ["": 23, "tokc": 1]>
g (float[batch,seq,64] x) => (float[batch,seq,4] y) <float[4,64] w, float[4] b>
{
   y = tokc.Linear (x, w, b)
}
"""


def test_a_sound_program_passes() -> None:
    verify(parse(TEXT))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("tokc.Linear", "tokc.Lineal", "unknown op 'tokc::Lineal'; choose from"),
        ("tokc.Linear", "Lineal", "unknown op 'ai.onnx::Lineal'"),
        ("(x, w, b)", "(x, w, b, b)", "takes at most 3 inputs, not 4"),
        ("(x, w, b)", "(x)", "lacks its input 'weight'"),
        ("Linear (", "Linear <axis = 1> (", "unknown attribute 'axis' of Linear; it has none"),
        ("tokc.Linear (x, w, b)", "Sigmoid <axis = 1> (x)", "unknown attribute 'axis' of Sigmoid"),
        ("float[batch,seq,4] y", "float[batch,seq,5] y", "said to have shape"),
        ("float[batch,seq,4] y", "float16[batch,seq,4] y", "said to be FLOAT16"),
        ('"": 23', '"": 22', "opset 22"),
        ("=> (float[batch,seq,4] y)", "=> (float[batch,seq,4] logits)", "never defined"),
        ("4] y", "4] logits", "promises input 'input_ids'"),
    ],
)
def test_a_broken_promise_is_named(old: str, new: str, message: str) -> None:
    text = TEXT.replace(old, new)
    if message.startswith("promises"):
        text = text.replace("y = ", "logits = ")
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)
    with pytest.raises(VerifyFailed) as caught:
        verify(parse(text))
    assert message in str(caught.value)


def test_a_value_read_before_it_is_defined_is_named() -> None:
    program = parse(TEXT.replace("y = ", "h = Neg (x)\n   y = ").replace("(x, w", "(h, w"))
    first, second = program.graph
    program.graph.remove(first)
    program.graph.insert_after(second, first)
    with pytest.raises(VerifyFailed, match="'h' is read before it is defined"):
        verify(program)


def test_two_values_of_one_name_are_refused() -> None:
    program = parse(TEXT.replace("y = ", "h = Neg (x)\n   y = ").replace("(x, w", "(h, w"))
    program.graph.inputs[0].name = "h"
    assert isinstance(program.model, ir.Model)
    with pytest.raises(VerifyFailed, match="'h' is given to two values"):
        verify(program)

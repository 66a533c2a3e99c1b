"""A program's text and its dumps read back as the same program."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokc.errors import VerifyFailed
from tokc.ir.program import Assets, KvLayout, ModelConfig, Program
from tokc.ir.text import dump, load_dump, parse, render

TEXT = """
<ir_version: 11, opset_import: ["": 23, "tokc": 1]>
g (float[batch,seq,64] x) => (float[batch,seq,4] y)
   <uint4[4,64] "a.q", float16[4,2] "a.scale", float two = {2.0}, int64[2] d = {1, 2}>
{
   h = tokc.QuantLinear <zero_point = 8, act_group = 0> (x, "a.q", "a.scale")
   y = Mul(h, two)
}
"""

sizes = st.integers(1, 10**6)
configs = st.builds(
    ModelConfig,
    family=st.sampled_from(["llama", "qwen3", "gemma3"]),
    **dict.fromkeys(
        ["hidden", "layers", "heads", "kv_heads", "head_dim", "intermediate", "vocab", "context"], sizes
    ),
    norm_epsilon=st.floats(1e-12, 1.0),
    tied_embedding=st.booleans(),
    bos_token_id=st.none() | sizes,
    eos_token_ids=st.lists(sizes, max_size=3).map(tuple),
)
layouts = st.none() | st.builds(KvLayout, page=sizes, dtype=st.sampled_from(["f32", "f16", "int8", "int4"]))


def weighted(program: Program) -> Program:
    """Give every weight of a parsed program data."""
    rng = np.random.default_rng(0)
    for name, value in program.graph.initializers.items():
        tensor = value.const_value
        assert tensor is not None
        if name in ("a.q", "a.scale"):
            array = rng.integers(0, 15, tensor.shape.numpy()).astype(tensor.dtype.numpy())
            value.const_value = ir.tensor(array, dtype=tensor.dtype, name=name)
    return program


def test_text_of_parsed_text_is_the_same_text() -> None:
    text = render(parse(TEXT))
    assert 'uint4[4,64] "a.q"' in text
    assert "two =  {2}" in text
    assert render(parse(text)) == text


@given(configs, layouts)
def test_facts_survive_the_text(config: ModelConfig, kv: KvLayout | None) -> None:
    program = parse(TEXT).replace(config=config, kv=kv, form="batch" if kv is None else "ragged")
    back = parse(render(program))
    assert (back.config, back.kv, back.form) == (program.config, program.kv, program.form)


def test_elided_weights_say_so() -> None:
    weight = parse(TEXT).graph.initializers["a.q"].const_value
    assert weight is not None
    with pytest.raises(VerifyFailed, match=r"data of 'a\.q' is not part"):
        weight.numpy()


def test_malformed_text_is_refused() -> None:
    with pytest.raises(VerifyFailed, match="malformed"):
        parse("g (float x => {}")


def test_a_dump_loads_back_with_weights_and_assets(tmp_path: Path) -> None:
    assets = Assets(tokenizer_json='{"a": "ü"}', special_tokens={"bos_token": "<s>"}, licence="MIT")
    program = weighted(parse(TEXT)).replace(assets=assets)
    path = dump(program, tmp_path / "ir" / "000_imported")
    dump(program, tmp_path / "ir" / "001_same")
    back = load_dump(path)
    assert render(back) == render(program) == (tmp_path / "ir" / "000_imported.txt").read_text()
    assert back.assets == assets
    for name, value in program.graph.initializers.items():
        found = back.graph.initializers[name].const_value
        assert found is not None
        assert value.const_value is not None
        np.testing.assert_array_equal(found.numpy(), value.const_value.numpy())
    assert len(list((tmp_path / "ir" / "weights").iterdir())) == 1
    again = dump(back, tmp_path / "elsewhere" / "000_again")
    assert not (tmp_path / "elsewhere" / "weights").exists()
    assert render(load_dump(again)) == render(back)


def test_a_dump_without_its_assets_is_refused(tmp_path: Path) -> None:
    path = dump(weighted(parse(TEXT)), tmp_path / "000_imported")
    for assets in tmp_path.glob("assets-*.json"):
        assets.unlink()
    with pytest.raises(VerifyFailed, match="lacks its assets"):
        load_dump(path)

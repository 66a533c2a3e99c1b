"""The code that a page shows does what the page says."""

import runpy
from pathlib import Path

from tests.passes.graphs import agree, program, random
from tokc.ir.rewrite import collect_remarks

PAGE = Path(__file__).resolve().parents[2] / "docs" / "adding-a-pass.md"
SUBTRACTED = """g (float[s,8] a, float[s,8] b) => (float[s,8] y) {
    n = Neg (b)
    y = Sub (a, n)
}"""


def test_the_sample_pass_folds_and_says_what_it_leaves(tmp_path: Path) -> None:
    sample = tmp_path / "sample.py"
    sample.write_text(PAGE.read_text().partition("```python\n")[2].partition("```")[0])
    kind = runpy.run_path(str(sample))["FoldNegation"]
    before = program(SUBTRACTED)
    after = kind().run(before)
    assert [node.op_type for node in after.graph] == ["Add"]
    agree(before, after, {"a": random(3, 8), "b": random(3, 8)})
    assert kind().run(after) is after
    read_twice = program(SUBTRACTED.replace("y = Sub (a, n)", "z = Sub (a, n)\n    y = Mul (z, n)"))
    with collect_remarks() as missed:
        assert kind().run(read_twice) is read_twice
    assert "'n' has other readers" in str(missed[0])

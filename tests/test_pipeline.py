"""The pipeline's text form, and how it runs."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokc.errors import PassFailed, TokcError
from tokc.ir.program import ModelConfig, Program
from tokc.pipeline import Pipeline, Step, named_passes, pass_text


@dataclass(frozen=True)
class Stretch:
    """A pass with an option of every kind."""

    name: ClassVar[str] = "stretch"
    exact: ClassVar[bool] = True
    times: int = 2
    factor: float = 0.5
    kind: Literal["plain", "fancy"] = "plain"
    deep: bool = False

    def run(self, program: Program) -> Program:
        """Change the family's name."""
        return replace(program, config=replace(program.config, family=program.config.family * self.times))


@dataclass(frozen=True)
class Keep:
    """A pass that matches nothing."""

    name: ClassVar[str] = "keep"
    exact: ClassVar[bool] = True

    def run(self, program: Program) -> Program:
        """Return the same program."""
        return program


@dataclass(frozen=True)
class Crash:
    """A pass with a bug."""

    name: ClassVar[str] = "crash"
    exact: ClassVar[bool] = True

    def run(self, program: Program) -> Program:
        """Raise."""
        raise KeyError(program.config.family)


TABLE = {one.name: one for one in (Stretch, Keep, Crash)}

passes = st.one_of(
    st.builds(
        Stretch,
        times=st.integers(),
        factor=st.floats(allow_nan=False),
        kind=st.sampled_from(["plain", "fancy"]),
        deep=st.booleans(),
    ),
    st.builds(Keep),
)


def _program() -> Program:
    graph = ir.Graph([], [], nodes=[], name="g", opset_imports={"": 23})
    config = ModelConfig(
        family="a",
        hidden=1,
        layers=1,
        heads=1,
        kv_heads=1,
        head_dim=1,
        intermediate=1,
        vocab=1,
        context=1,
        norm_epsilon=1e-5,
        tied_embedding=False,
    )
    return Program(ir.Model(graph, ir_version=11), config)


@given(st.lists(passes, max_size=5))
def test_what_is_printed_parses_to_the_same_pipeline(many: list[Stretch | Keep]) -> None:
    pipeline = Pipeline(tuple(many))
    again = Pipeline.parse(str(pipeline), table=TABLE)
    assert again == pipeline
    assert str(again) == str(pipeline)


@pytest.mark.parametrize("name", sorted(named_passes()))
def test_every_pass_prints_and_parses_at_its_defaults(name: str) -> None:
    pipeline = Pipeline.parse(name)
    assert Pipeline.parse(str(pipeline)) == pipeline


def test_options_left_out_take_their_defaults_and_are_printed() -> None:
    pipeline = Pipeline.parse(" stretch{ times=3  deep=true } ,keep", table=TABLE)
    assert pipeline == Pipeline((Stretch(times=3, deep=True), Keep()))
    assert str(pipeline) == "stretch{times=3 factor=0.5 kind=plain deep=true},keep"


def test_an_empty_text_is_an_empty_pipeline() -> None:
    assert Pipeline.parse("  ") == Pipeline(())


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("nope", "unknown pass 'nope'; choose from crash, keep, stretch"),
        (
            "stretch{size=2}",
            "unknown option 'size' of pass 'stretch'; it accepts times, factor, kind, deep",
        ),
        ("keep{a=1}", "unknown option 'a' of pass 'keep'; it has no options"),
        ("stretch{times=many}", "option 'times' of pass 'stretch' is a whole number, not 'many'"),
        ("stretch{factor=x}", "option 'factor' of pass 'stretch' is a number, not 'x'"),
        ("stretch{kind=x}", "option 'kind' of pass 'stretch' is one of plain, fancy, not 'x'"),
        ("stretch{deep=1}", "option 'deep' of pass 'stretch' is true or false, not '1'"),
        ("stretch{times}", "option 'times' of pass 'stretch' is not of the form key=value"),
        ("stretch{times=1 times=2}", "option 'times' of pass 'stretch' is given twice"),
        ("keep,", "pipeline text is malformed at ''"),
        ("keep,,keep", "pipeline text is malformed at ',keep'"),
        ("keep}", "pipeline text is malformed at 'keep}'"),
        ("stretch{times=1", "pipeline text is malformed at 'stretch{times=1'"),
    ],
)
def test_a_text_that_names_nothing_known_is_refused(text: str, problem: str) -> None:
    with pytest.raises(TokcError) as caught:
        Pipeline.parse(text, table=TABLE)
    assert caught.value.problem == problem


class _Recorder:
    def __init__(self) -> None:
        self.steps: list[Step] = []

    def after_pass(self, step: Step) -> None:
        self.steps.append(step)


def test_observers_see_every_pass_and_whether_it_changed_anything() -> None:
    recorder = _Recorder()
    program = Pipeline((Stretch(times=3), Keep())).run(_program(), [recorder])
    assert program.config.family == "aaa"
    assert [(step.number, step.total, step.changed) for step in recorder.steps] == [
        (1, 2, True),
        (2, 2, False),
    ]
    assert recorder.steps[0].seconds >= 0


def test_a_pipeline_stops_after_the_named_pass() -> None:
    recorder = _Recorder()
    Pipeline((Keep(), Stretch(), Keep())).run(_program(), [recorder], stop_after="stretch")
    assert [pass_text(step.pass_) for step in recorder.steps] == [
        "keep",
        "stretch{times=2 factor=0.5 kind=plain deep=false}",
    ]


def test_a_stop_at_a_pass_that_is_not_there_is_refused() -> None:
    with pytest.raises(TokcError, match="no pass 'stretch' to stop after"):
        Pipeline((Keep(),)).run(_program(), stop_after="stretch")


def test_a_crash_names_the_pass_and_its_place() -> None:
    with pytest.raises(PassFailed, match=r"pass 2 of 2, crash, raised KeyError") as caught:
        Pipeline((Keep(), Crash())).run(_program())
    assert isinstance(caught.value.__cause__, KeyError)

"""Prompt lookup: fewer steps where a text repeats itself, none of another key's text."""

from tests.runtime.conftest import MakeEngine
from tokc.runtime.engine import Engine
from tokc.runtime.sequence import SamplingParams
from tokc.runtime.speculation.answers import KEY_TOKENS, Answers
from tokc.runtime.speculation.config import MAX_TOKENS
from tokc.runtime.speculation.ngram import NgramDrafter, continuation
from tokc.runtime.speculation.speculation import Speculation
from tokc.runtime.speculation.step_time import StepTime
from tokc.runtime.speculation.suffix_index import SuffixAutomaton


class Cheap(StepTime):
    """A machine on which a token more costs a step what it is taken to before one was timed."""

    def learn(self, tokens: int, seconds: float, *, aside: bool = False) -> None:
        """Learn nothing: the tiny model's own time is all Python's."""

    def observations(self, tokens: int) -> float:
        """Say that enough is known."""
        return float("inf")


def cheap(*, answers: Answers | None = None) -> Speculation:
    speculation = Speculation(NgramDrafter(answers))
    speculation.time = Cheap()
    return speculation


def steps_for(engine: Engine, tokens: int) -> int:
    engine.generate(list(b"tell me a story"), max_tokens=tokens, ignore_eos=True)
    return engine.counters.steps


def test_a_text_that_repeats_itself_takes_a_fraction_of_the_steps(make_engine: MakeEngine) -> None:
    engine = make_engine(memory=1, context_length=256, num_pages=80, speculation=cheap())
    assert steps_for(engine, 200) < 100
    assert engine.counters.drafts.accepted > 100


def test_a_text_that_never_repeats_drafts_nothing(make_engine: MakeEngine) -> None:
    engine = make_engine(context_length=64, speculation=Speculation(NgramDrafter()))
    assert steps_for(engine, 40) == 40
    assert engine.counters.drafts.drafts == 0


def test_drafts_go_round_a_loop_and_stay_bounded() -> None:
    index = SuffixAutomaton()
    assert continuation(index, [1, 2, 3], MAX_TOKENS) == ([], 0)
    assert continuation(index, [1, 2, 3, 1, 2, 3, 1, 2], 5) == ([3, 1, 2, 3, 1], 5)


def steps_of_second(make_engine: MakeEngine, salts: tuple[bytes, bytes]) -> int:
    engine = make_engine(context_length=128, num_pages=80, speculation=cheap(answers=Answers()))
    for salt in salts:
        before = engine.counters.steps
        request = engine.request(list(b"say it again"), SamplingParams(max_tokens=60), cache_salt=salt)
        engine._loop.submit(request)
        while not request.done:
            engine.step()
    return engine.counters.steps - before


def test_an_answer_is_found_by_requests_of_the_same_salt_only(make_engine: MakeEngine) -> None:
    assert steps_of_second(make_engine, (b"a", b"a")) < 15
    assert steps_of_second(make_engine, (b"a", b"b")) == 60


def test_answers_are_bounded_and_the_oldest_goes_first() -> None:
    answers = Answers(most_tokens=100)
    for first in range(0, 300, 30):
        answers.add(b"", list(range(first, first + 30)))
        assert answers.tokens <= 100
    assert answers.find(b"", [1, 2, 3], 4) == ([], 0)
    assert answers.find(b"", [270, 271, 272, 273], 3) == ([274, 275, 276], 4)
    answers.add(b"other", list(range(90)))
    assert answers.find(b"", [270, 271, 272], 3) == ([], 0)


def test_an_answer_that_repeats_itself_leaves_no_trace_when_it_goes() -> None:
    answers = Answers(most_tokens=20)
    answers.add(b"", [1, 2, 3] * 5)
    answers.add(b"", list(range(10, 30)))
    assert answers.tokens == 20
    assert answers.find(b"", [1, 2, 3], 4) == ([], 0)
    answers.add(b"", [7] * KEY_TOKENS)
    assert answers.tokens == 20

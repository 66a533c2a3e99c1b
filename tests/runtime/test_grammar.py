"""Structured output: what ends by itself matches, whatever the model would rather say."""

import json
import re
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.runtime.conftest import MakeEngine
from tests.runtime.hash_model import EOS, byte_tokenizer
from tokc.errors import RequestRefused
from tokc.runtime.engine import Engine
from tokc.runtime.grammar import ANY_OBJECT, Constraint, Grammars, json_schema
from tokc.runtime.sequence import Result, SamplingParams
from tokc.runtime.speculation.ngram import NgramDrafter
from tokc.runtime.speculation.speculation import Speculation

PERSON = json_schema(
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 6, "pattern": "^[a-z]*$"},
            "age": {"type": "integer", "minimum": 0, "maximum": 99},
            "kind": {"enum": ["cat", "dog"]},
        },
        "required": ["name", "age", "kind"],
        "additionalProperties": False,
    }
)
DRAWN = {"temperature": 1.0, "max_tokens": 200}


def engine_of(make_engine: MakeEngine, **sizes: int) -> Engine:
    return make_engine(context_length=256, num_pages=256, **sizes)


def answers(engine: Engine, constraint: Constraint, seeds: range, **options: object) -> list[Result]:
    params = [SamplingParams(constraint=constraint, seed=seed, **options) for seed in seeds]  # type: ignore[arg-type]
    return [engine.generate(f"p{seed}", one) for seed, one in zip(seeds, params, strict=True)]


def test_every_answer_that_ends_matches_the_schema(make_engine: MakeEngine) -> None:
    engine = engine_of(make_engine)
    results = answers(engine, PERSON, range(20), **DRAWN)
    ended = [json.loads(one.text) for one in results if one.finish_reason == "stop"]
    assert len(ended) >= 15
    for person in ended:
        assert set(person) == {"name", "age", "kind"}
        assert 0 <= person["age"] <= 99
        assert person["kind"] in {"cat", "dog"}


def test_greedy_answers_match_too(make_engine: MakeEngine) -> None:
    [result] = answers(engine_of(make_engine), PERSON, range(1), max_tokens=200)
    assert set(json.loads(result.text)) == {"name", "age", "kind"}


@pytest.mark.parametrize(
    ("constraint", "pattern"),
    [
        (Constraint("regex", "[0-9]{3}-[a-f]{2}"), "[0-9]{3}-[a-f]{2}"),
        (Constraint("choice", '["yes", "no", "może"]'), "yes|no|może"),
        (Constraint("grammar", 'root ::= "a" ("b" | "cc") "d"'), "a(b|cc)d"),
        (Constraint("grammar", 'start: "a" /b{2,3}/'), "ab{2,3}"),
    ],
)
def test_other_grammars_hold(make_engine: MakeEngine, constraint: Constraint, pattern: str) -> None:
    for result in answers(engine_of(make_engine), constraint, range(4), **DRAWN):
        assert result.finish_reason == "stop"
        assert re.fullmatch(pattern, result.text)


def test_an_answer_is_the_same_alone_among_others_and_behind_a_draft(make_engine: MakeEngine) -> None:
    alone = [one.token_ids for one in answers(engine_of(make_engine), PERSON, range(6), **DRAWN)]
    params = [
        SamplingParams(constraint=PERSON, seed=seed, temperature=1.0, max_tokens=200) for seed in range(6)
    ]
    for speculation in (None, Speculation(NgramDrafter())):
        engine = make_engine(
            context_length=256, num_pages=90, max_tokens=24, speculation=speculation
        )  # too few pages for all: some are preempted
        requests = [engine.request(f"p{seed}", one) for seed, one in enumerate(params)]
        for request in requests:
            engine._loop.submit(request)
        while not all(request.done for request in requests):
            engine.step()
        assert [request.result().token_ids for request in requests] == alone


def test_nothing_but_the_end_is_left_behind_a_whole_answer() -> None:
    matcher = Grammars(byte_tokenizer(), 259, [EOS]).matcher(Constraint("choice", '["x"]'))
    tokens = []
    for _ in range(2):
        scores = np.zeros(259, np.float32)
        matcher.mask(scores)
        allowed = np.flatnonzero(np.isfinite(scores)).tolist()
        tokens.append(allowed)
        matcher.accept(allowed[0])
    assert [byte_tokenizer().token_bytes(token) for token in tokens[0]] == [b"x"]
    assert tokens[1] == [EOS]


def test_min_tokens_does_not_hold_a_finished_answer_open(make_engine: MakeEngine) -> None:
    [result] = answers(
        engine_of(make_engine), Constraint("choice", '["x"]'), range(1), min_tokens=20, max_tokens=50
    )
    assert (result.text, result.finish_reason) == ("x", "stop")


def test_an_object_that_is_cut_off_says_so(make_engine: MakeEngine) -> None:
    [result] = answers(engine_of(make_engine), ANY_OBJECT, range(1), max_tokens=2)
    assert result.finish_reason == "length"
    assert result.text.startswith("{")


@given(st.recursive(st.none() | st.booleans() | st.text(max_size=3), st.lists, max_leaves=4))
@settings(max_examples=30, deadline=None)
def test_any_json_that_is_no_schema_is_refused_or_compiled(value: object) -> None:
    grammars = Grammars(byte_tokenizer(), 259, [EOS])
    with suppress(RequestRefused):
        grammars.matcher(Constraint("json_schema", json.dumps(value)))


@pytest.mark.parametrize(
    "constraint",
    [
        Constraint("json_schema", "{"),
        json_schema({"type": "nothing"}),
        json_schema({"$ref": "https://example.com/schema.json"}),
        Constraint("regex", "(["),
        Constraint("choice", "7"),
        Constraint("grammar", "root ::= undefined"),
        Constraint("regex", "a" * (1 << 19)),
    ],
)
def test_what_is_no_grammar_is_refused(make_engine: MakeEngine, constraint: Constraint) -> None:
    with pytest.raises(RequestRefused, match="structured output"):
        make_engine().request("a", SamplingParams(constraint=constraint))


def test_a_grammar_that_outgrows_its_parser_fails_its_own_request_only(make_engine: MakeEngine) -> None:
    engine = engine_of(make_engine)
    bad = engine.request("a", SamplingParams(constraint=PERSON, max_tokens=20))
    good = engine.request("b", SamplingParams(max_tokens=20))
    assert bad.sequence.matcher is not None
    bad.sequence.matcher._matcher.consume_token(1)
    for request in (bad, good):
        engine._loop.submit(request)
    while not (bad.done and good.done):
        engine.step()
    with pytest.raises(RequestRefused, match="structured output"):
        bad.result()
    assert len(good.result().token_ids) > 0


def test_a_model_without_an_end_cannot_be_held_to_a_grammar() -> None:
    with pytest.raises(RequestRefused, match="no token that ends"):
        Grammars(byte_tokenizer(), 259, []).matcher(ANY_OBJECT)


def test_an_answer_held_to_a_grammar_may_not_ignore_its_end() -> None:
    with pytest.raises(RequestRefused, match="ignore_eos"):
        SamplingParams(constraint=ANY_OBJECT, ignore_eos=True)

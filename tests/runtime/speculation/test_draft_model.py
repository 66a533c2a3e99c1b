"""A draft model with a cache of its own: a twin of the model is right, whatever happens to the pages."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.runtime.hash_model import HashModel
from tests.runtime.small_artifact import write_small_artifact
from tests.runtime.speculation.drafting import Eager, answers_of, engine_of
from tokc.errors import ArtifactRefused
from tokc.runtime.artifact import Artifact
from tokc.runtime.speculation.draft_model import DraftModelDrafter, open_draft_model, require_same_tokenizer
from tokc.runtime.speculation.speculation import Speculation

# Prompts of few beginnings, so that many share pages.
PROMPTS = st.lists(
    st.tuples(st.sampled_from([0, 3, 4, 8, 12]), st.lists(st.integers(0, 2), min_size=1, max_size=9)).map(
        lambda parts: [7] * parts[0] + parts[1]
    ),
    min_size=1,
    max_size=5,
)


def twins(**sizes: int) -> tuple[HashModel, DraftModelDrafter]:
    model, draft = HashModel(**sizes), HashModel(**sizes)
    return model, DraftModelDrafter(draft, vocab_size=model.vocab_size)


@pytest.mark.parametrize("params", [{}, {"temperature": 0.8, "top_p": 0.9}])
@given(prompts=PROMPTS, budget=st.integers(3, 16), pages=st.integers(10, 40), cached=st.booleans())
@settings(max_examples=25, deadline=None)
def test_a_twin_is_always_right(
    params: dict[str, Any], prompts: list[list[int]], budget: int, pages: int, *, cached: bool
) -> None:
    options = {"max_tokens": 14, **params}
    plain = answers_of(engine_of(HashModel(num_pages=pages)), prompts, **options)
    model, drafter = twins(num_pages=pages)
    engine = engine_of(model, Eager(drafter, most=4), token_budget=budget, prefix_cache=cached)
    for _ in range(2):
        drafted = answers_of(engine, prompts, **options)
        assert [one.token_ids for one in drafted] == [one.token_ids for one in plain]
    counts = engine.counters.drafts
    ended = 2 * sum(one.finish_reason == "stop" for one in plain)  # nothing behind an end holds
    assert counts.verified - counts.accepted <= counts.drafts + 4 * ended
    unfinished = [one for one in plain if len(one.token_ids) > 4]
    assert counts.accepted > 0 or not unfinished or budget < 4


def test_a_twin_makes_five_tokens_a_step_and_computes_each_once() -> None:
    model, drafter = twins(num_pages=64)
    engine = engine_of(model, Eager(drafter, most=4))
    answers_of(engine, [b"a prompt"], max_tokens=51, ignore_eos=True)
    assert engine.counters.steps == 1 + 10
    assert engine.counters.drafts.accepted_at == [10] * 4
    computed = sum(len(batch.input_ids) for batch in drafter._draft.steps)  # type: ignore[attr-defined]
    assert computed == len(b"a prompt") + 50 - 1


def test_entries_of_a_shared_beginning_are_computed_once() -> None:
    model, drafter = twins(num_pages=64)
    engine = engine_of(model, Eager(drafter, most=4))
    prompt = bytes(range(33))
    draft: Any = drafter._draft
    seen = []
    for _ in range(2):
        before = sum(len(batch.input_ids) for batch in draft.steps)
        answers_of(engine, [prompt], max_tokens=6, ignore_eos=True)
        seen.append(sum(len(batch.input_ids) for batch in draft.steps) - before)
    assert seen[0] >= 33
    assert seen[1] <= 10


def test_what_was_never_drafted_for_is_caught_up_with_in_parts() -> None:
    model, drafter = twins(num_pages=64, max_tokens=8)
    engine = engine_of(model, Speculation(drafter))
    request = answers_of(engine, [bytes(range(40))], max_tokens=12, ignore_eos=True)
    assert len(request[0].token_ids) == 12
    draft: Any = drafter._draft
    assert max(len(batch.input_ids) for batch in draft.steps) <= 8


def test_no_token_is_drafted_that_the_model_does_not_have() -> None:
    model, draft = HashModel(vocab_size=64), HashModel(vocab_size=259)
    drafter = DraftModelDrafter(draft, vocab_size=64)
    engine = engine_of(model, Eager(drafter, most=3))
    answers_of(engine, [[1, 2, 3]], max_tokens=20, ignore_eos=True)
    assert max(max(batch.input_ids) for batch in model.steps) < 64


def tokenizer(**tokens: int) -> bytes:
    return json.dumps({"model": {"vocab": tokens}, "added_tokens": [{"id": 9, "content": "<s>"}]}).encode()


def test_another_tokenizer_is_refused_and_the_same_in_another_order_is_not(tmp_path: Path) -> None:
    texts = {"a": tokenizer(x=0, y=1), "b": tokenizer(y=1, x=0), "c": tokenizer(x=1, y=0)}
    folders = {
        name: Artifact.open(write_small_artifact(tmp_path / name, {"tokenizer.json": text}))
        for name, text in texts.items()
    }
    require_same_tokenizer(folders["a"], folders["b"])
    with pytest.raises(ArtifactRefused, match="another tokenizer: token 0 is 'y', the model's is 'x'"):
        require_same_tokenizer(folders["a"], folders["c"])


def test_pages_of_another_size_are_refused(tmp_path: Path) -> None:
    folder = write_small_artifact(tmp_path / "draft", {"tokenizer.json": tokenizer(x=0)})
    artifact = Artifact.open(folder)
    with pytest.raises(ArtifactRefused, match="pages of 16 tokens, the model's of 4"):
        open_draft_model(str(folder), artifact, HashModel(), None)

"""Random arrivals, cancellations and steps: whatever comes, pages are accounted for and answers are right.

The model reads its whole history through the pages, so a page that is shared, freed or written wrongly
changes tokens; and the accounts are checked after every step.
"""

from collections import Counter
from functools import cache

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.runtime.hash_model import EOS, HashModel, byte_tokenizer, history_logits
from tokc.runtime.core import Core
from tokc.runtime.engine import Engine
from tokc.runtime.request import Request
from tokc.runtime.sampler import sample
from tokc.runtime.sequence import SamplingParams, Sequence
from tokc.runtime.speculation.ngram import NgramDrafter
from tokc.runtime.speculation.speculation import Speculation

PAGE, CONTEXT = 4, 40
MOST_STEPS = 2000
TOKENIZER = byte_tokenizer()
# Prompts of few beginnings, so that many share pages.
PROMPTS = st.tuples(
    st.sampled_from([0, 3, 4, 8, 12]), st.lists(st.integers(0, 2), min_size=1, max_size=9)
).map(lambda parts: tuple([7] * parts[0] + parts[1]))


@cache
def alone(prompt: tuple[int, ...], max_tokens: int, seed: int | None) -> tuple[int, ...]:
    """Return the answer computed without engine, cache or neighbours."""
    params = SamplingParams(max_tokens=max_tokens, temperature=0.0 if seed is None else 0.9, seed=seed)
    sequence = Sequence(prompt, params, seed=seed or 0, last_output=max_tokens)
    sequence.eos_ids = frozenset([EOS])
    while sequence.finish_reason is None:
        [(token, _)] = sample(history_logits(sequence.tokens)[None], [sequence], [0])
        sequence.append(token)
    return tuple(sequence.output)


class Serving(RuleBasedStateMachine):
    """An engine with few pages and few places."""

    @initialize(
        pages=st.integers(CONTEXT // PAGE, 24),
        budget=st.integers(1, 16),
        places=st.integers(1, 5),
        prefix_cache=st.booleans(),
        speculate=st.booleans(),
    )
    def start(self, pages: int, budget: int, places: int, prefix_cache: bool, speculate: bool) -> None:
        self.model = HashModel(page_size=PAGE, num_pages=pages, context_length=CONTEXT, max_seqs=places)
        self.core = Core(
            self.model,
            token_budget=budget,
            prefix_cache=prefix_cache,
            speculation=Speculation(NgramDrafter()) if speculate else None,
        )
        self.engine = Engine(self.model, TOKENIZER, eos_ids=[EOS], core=self.core)
        self.running: list[tuple[Request, tuple[int, ...], int, int | None]] = []
        self.ended = 0

    @rule(
        prompt=PROMPTS,
        forks=st.integers(1, 3),
        max_tokens=st.integers(1, 14),
        seed=st.none() | st.integers(0, 3),
        salt=st.sampled_from([b"", b"a", b"b"]),
        priority=st.integers(-1, 1),
    )
    def arrive(
        self,
        prompt: tuple[int, ...],
        forks: int,
        max_tokens: int,
        seed: int | None,
        salt: bytes,
        priority: int,
    ) -> None:
        for fork in range(forks):
            own = None if seed is None else seed + fork
            temperature = 0.0 if own is None else 0.9
            params = SamplingParams(max_tokens=max_tokens, temperature=temperature, seed=own)
            request = self.engine.request(prompt, params, cache_salt=salt, priority=priority)
            self.engine._loop.submit(request)
            self.running.append((request, prompt, max_tokens, own))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        request, *_ = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        self.engine._loop.abort([request])
        assert request.sequence.pages == []

    @rule(steps=st.integers(1, 6))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            self.engine.step()
            self.pages_are_accounted_for()
        self.collect()

    def collect(self) -> None:
        """Compare what ended with the answer alone."""
        for request, prompt, max_tokens, seed in [one for one in self.running if one[0].done]:
            request.deltas.clear()
            assert request.result().token_ids == alone(prompt, max_tokens, seed)
            self.ended += 1
        self.running = [one for one in self.running if not one[0].done]

    @invariant()
    def pages_are_accounted_for(self) -> None:
        blocks, scheduler = self.core.blocks, self.core.scheduler
        held = Counter(page for sequence in scheduler.running for page in sequence.pages)
        assert [held[page] for page in range(blocks.num_pages)] == blocks._users
        free, kept = list(blocks._free), list(blocks._kept)
        assert sorted([*free, *kept, *held]) == list(range(blocks.num_pages)), "lost, or in two places"
        assert all(blocks._digest_of[page] is None for page in free)
        assert all(blocks._digest_of[page] is not None for page in kept)
        assert {page: digest for digest, page in blocks._page_of.items()} == {
            page: digest for page, digest in enumerate(blocks._digest_of) if digest is not None
        }
        assert all(not sequence.pages and sequence.slot is None for sequence in scheduler.waiting)
        slots = [sequence.slot for sequence in scheduler.running]
        assert sorted([*slots, *scheduler._slots]) == list(range(scheduler.max_seqs))  # type: ignore[type-var]
        self.shared_pages_hold_the_same_beginning()

    def shared_pages_hold_the_same_beginning(self) -> None:
        seen: dict[int, tuple[int, bytes, list[int]]] = {}
        for sequence in self.core.scheduler.running:
            for index, page in enumerate(sequence.pages):
                mine = index, sequence.cache_salt, sequence.tokens[: (index + 1) * PAGE]
                assert seen.setdefault(page, mine) == mine, "a page is shared that should not be"

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        for _ in range(MOST_STEPS):
            if self.core.idle and not self.engine._loop.unseen:
                break
            self.engine.step()
            self.pages_are_accounted_for()
        self.collect()
        assert not self.running, "a request never ended"
        assert self.core.blocks.used == 0
        self.engine.close()


TestServing = Serving.TestCase
TestServing.settings = settings(max_examples=100, stateful_step_count=25, deadline=None)

"""Steps that go without a look at drafts, where looking costs and none paid."""

from tokc.runtime.speculation.speculation import MOST_REST, RESTING_SEQUENCES, Rest


def steps_until_a_look(rest: Rest, sequences: int) -> int:
    steps = 0
    while rest.goes_on(sequences):
        steps += 1
    return steps


def test_rests_double_while_nothing_pays_and_end_when_something_does() -> None:
    rest, found = Rest(), []
    for _ in range(6):
        rest.note(RESTING_SEQUENCES, paid=False)
        found.append(steps_until_a_look(rest, RESTING_SEQUENCES))
    assert found == [1, 2, 4, MOST_REST, MOST_REST, MOST_REST]
    rest.note(RESTING_SEQUENCES, paid=True)
    assert not rest.goes_on(RESTING_SEQUENCES)
    rest.note(RESTING_SEQUENCES, paid=False)
    assert steps_until_a_look(rest, RESTING_SEQUENCES) == 1


def test_few_sequences_are_looked_at_in_every_step() -> None:
    rest = Rest()
    rest.note(RESTING_SEQUENCES - 1, paid=False)
    assert not rest.goes_on(RESTING_SEQUENCES - 1)


def test_fewer_sequences_end_a_rest() -> None:
    rest = Rest()
    rest.note(9, paid=False)
    assert not rest.goes_on(8)
    assert rest.goes_on(9)

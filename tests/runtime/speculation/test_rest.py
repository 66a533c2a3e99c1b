"""Steps that go without a look at drafts, where looks cost more than drafts are worth."""

from tokc.runtime.speculation.speculation import MOST_REST, Rest


def steps_until_a_look(rest: Rest, sequences: int) -> int:
    steps = 0
    while rest.goes_on(sequences):
        steps += 1
    return steps


def test_rests_double_while_looks_cost_more_than_they_save_and_end_when_they_save() -> None:
    rest, found = Rest(), []
    for _ in range(6):
        rest.note(4, -1.0)
        found.append(steps_until_a_look(rest, 4))
    assert found == [1, 2, 4, 8, MOST_REST, MOST_REST]
    rest.note(4, 20.0)
    assert not rest.goes_on(4)
    looks = 0
    while not rest.goes_on(4):
        rest.note(4, -1.0)
        looks += 1
    assert looks > 5  # what was worth much lately is looked for again


def test_what_stays_awake_does_not_rest() -> None:
    rest = Rest()
    rest.note(1, -1.0, awake=True)
    assert not rest.goes_on(1)


def test_fewer_sequences_end_a_rest() -> None:
    rest = Rest()
    rest.note(9, -1.0)
    assert not rest.goes_on(8)
    assert rest.goes_on(9)

"""Damages bytes as files are damaged, and as someone who means harm would: sizes and counts above all."""

import random
from collections.abc import Iterator

WORDS = (0, 1, 0x7F, 0xFF, 0xFFFF, 0x7FFF_FFFF, 0xFFFF_FFFF, 0x7FFF_FFFF_FFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF)

OTHERS: tuple[object, ...] = (
    None, True, -1, 0, 1, 3, 1 << 40, 1 << 80, 1e308, 0.5, "", "x", "../x", [], [[]], {}, [1, -1], "y" * 999,
)  # fmt: skip


def damaged(content: bytes, seed: int, *, head: int = 4096) -> bytes:
    """Return `content` with one to four changes, most of them in its first `head` bytes."""
    rng, found = random.Random(seed), bytearray(content)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(min(head, len(found)) if rng.random() < 0.8 else len(found)) if found else 0
        kind = rng.randrange(6)
        if kind == 0:
            found[place : place + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            width = rng.choice((1, 2, 4, 8))
            word = rng.choice(WORDS) & ((1 << 8 * width) - 1)
            found[place : place + width] = word.to_bytes(width, "little")
        elif kind == 2:
            del found[place:]
        elif kind == 3:
            del found[place : place + rng.randint(1, 64)]
        elif kind == 4:
            found[place:place] = bytes(rng.randrange(256) for _ in range(rng.randint(1, 16)))
        else:
            other = rng.randrange(len(found)) if found else 0
            found[place : place + 16] = found[other : other + 16]
    return bytes(found)


def damaged_json(value: object, seed: int) -> object:
    """Return a JSON value in which one to three parts are others: of another type, negative, huge or gone."""
    rng = random.Random(seed)
    for _ in range(rng.randint(1, 3)):
        places = list(_places(value))
        if not places:
            return None
        holder, key = rng.choice(places)
        if rng.random() < 0.2:
            del holder[key]  # type: ignore[attr-defined]
        else:
            holder[key] = rng.choice(OTHERS)  # type: ignore[index]
    return value


def _places(value: object) -> Iterator[tuple[object, object]]:
    """Yield every place of a value: its holder, and the key or index in it."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in list(items):
        yield value, key
        yield from _places(part)

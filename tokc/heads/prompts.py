"""Prompts of four tasks, made of what is installed, divided by document into training and held out.

Chat and free text ask templates about topics, both written for tokc (Apache-2.0). Code editing takes
functions from the sources of Python's standard library; summarizing takes their docstrings and the texts of
tokc.quality (Python: PSF License Agreement, version 2; the rest public domain). A document is a topic, a
module or a text: one in ten is held out, by the hash of its name, and nothing of it occurs in training.
"""

import hashlib
import re
import sysconfig
from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass
from functools import cache
from inspect import cleandoc
from pathlib import Path
from textwrap import dedent
from typing import Literal, TypeVar

import numpy as np

from tokc.errors import UnknownOption
from tokc.heads.topics import COMPOSITIONS, EDITS, NAMES, QUESTIONS, SUMMARIES, TOPICS
from tokc.quality.text import calibration_text, evaluation_text

Split = Literal["training", "held out"]

TASKS = ("chat", "code editing", "summarizing", "free text")
LICENCES = (
    "Topics and templates: Apache-2.0, of tokc. Functions and docstrings: the standard library of Python, PSF"
    " License Agreement, version 2. Prose: the Jargon File, public domain, and the Python Language Reference,"
    " PSF License Agreement, version 2."
)
HELD_OUT_OF_256 = 26
SKIPPED = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo", "encodings"}
)
FUNCTION_CHARACTERS = (240, 1600)
PASSAGE_CHARACTERS = (500, 2000)
BEGINNING_CHARACTERS = (120, 400)
SOURCE_BYTES = 1 << 18
# A function whose head is one line, and all lines below it that are empty or further to the right.
FUNCTION = re.compile(
    r"^(?P<indent> *)def \w+\((?P<arguments>[^()\n]*)\)[^\n]*:\n(?:(?P=indent) +[^\n]*\n|\n)+", re.MULTILINE
)
ARGUMENT = re.compile(r"(?:^|, *)([a-z_]\w*)")
DOCSTRING = re.compile(r'"""(.+?)"""', re.DOTALL)

Random = np.random.Generator
Drawn = TypeVar("Drawn")


@dataclass(frozen=True)
class Prompt:
    """A request of a task; `document` is what it is made of. One without `chat` is continued as it stands."""

    task: str
    document: str
    text: str
    chat: bool = True

    @property
    def messages(self) -> list[dict[str, object]]:
        """Return it as a conversation."""
        return [{"role": "user", "content": self.text}]


@dataclass(frozen=True)
class Source:
    """A piece of a document: a function or a passage."""

    document: str
    text: str
    argument: str | None = None


def is_held_out(document: str) -> bool:
    """Return whether a document is kept from training."""
    return hashlib.sha256(document.encode()).digest()[0] < HELD_OUT_OF_256


def held_out_prompts(task: str, count: int, *, seed: int = 0) -> list[Prompt]:
    """Return `count` prompts of one of TASKS of which no document is trained on; the same for a seed.

    Raises: UnknownOption listing the tasks.
    """
    if task not in TASKS:
        raise UnknownOption(f"unknown task '{task}'; choose from {', '.join(TASKS)}")
    place = TASKS.index(task)
    return [prompt(index * len(TASKS) + place, "held out", seed=seed) for index in range(count)]


def prompt(index: int, split: Split, *, seed: int = 0) -> Prompt:
    """Return the prompt at a place of an endless row that takes the tasks in turns."""
    random = np.random.default_rng([seed, index, split == "held out"])
    task = TASKS[index % len(TASKS)]
    return {
        "chat": _chat,
        "code editing": _code_editing,
        "summarizing": _summarizing,
        "free text": _free_text,
    }[task](random, split)


def _chat(random: Random, split: Split) -> Prompt:
    topic, text = _about(random, split, QUESTIONS)
    return Prompt("chat", topic, text)


def _code_editing(random: Random, split: Split) -> Prompt:
    source = _drawn(random, _sources(split)["functions"])
    edit = _drawn(random, [edit for edit in EDITS if source.argument or "{argument}" not in edit])
    edit = edit.format(argument=source.argument, name=_drawn(random, NAMES))
    return Prompt("code editing", source.document, f"{edit}\n\n```python\n{source.text}\n```")


def _summarizing(random: Random, split: Split) -> Prompt:
    source = _drawn(random, _sources(split)["passages"])
    return Prompt("summarizing", source.document, f"{_drawn(random, SUMMARIES)}\n\n{source.text}")


def _free_text(random: Random, split: Split) -> Prompt:
    if random.random() < 0.5:
        topic, text = _about(random, split, COMPOSITIONS)
        return Prompt("free text", topic, text)
    source = _drawn(random, _sources(split)["passages"])
    length = int(random.integers(*BEGINNING_CHARACTERS))
    return Prompt("free text", source.document, source.text[:length].rpartition(" ")[0], chat=False)


def _about(random: Random, split: Split, templates: Items[str]) -> tuple[str, str]:
    topics = _topics(split)
    first, second = random.choice(len(topics), 2, replace=False)
    return topics[first], _drawn(random, templates).format(topics[first], other=topics[second])


def _drawn(random: Random, items: Items[Drawn]) -> Drawn:
    return items[int(random.integers(len(items)))]


@cache
def _topics(split: Split) -> tuple[str, ...]:
    return tuple(topic for topic in TOPICS if is_held_out(topic) == (split == "held out"))


@cache
def _sources(split: Split) -> Mapping[str, tuple[Source, ...]]:
    held_out = split == "held out"
    name, text = (
        ("evaluation.txt", evaluation_text()) if held_out else ("calibration.txt", calibration_text())
    )
    functions: list[Source] = []
    passages = [Source(name, passage) for passage in _passages(text)]
    for path in _modules():
        document = path.relative_to(_library()).as_posix()
        if is_held_out(document) == held_out:
            text = path.read_text(encoding="utf-8", errors="replace")
            functions += _functions(document, text)
            for found in DOCSTRING.findall(text):
                passages += [Source(document, passage) for passage in _passages(cleandoc(found))]
    return {"functions": tuple(functions), "passages": tuple(passages)}


def _library() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _modules() -> Iterator[Path]:
    for path in sorted(_library().rglob("*.py")):
        parts = path.relative_to(_library()).parts
        if SKIPPED.isdisjoint(parts) and path.stat().st_size <= SOURCE_BYTES:
            yield path


def _functions(document: str, text: str) -> Iterator[Source]:
    for match in FUNCTION.finditer(text):
        code = dedent(match[0]).rstrip()
        if FUNCTION_CHARACTERS[0] <= len(code) <= FUNCTION_CHARACTERS[1]:
            arguments = [name for name in ARGUMENT.findall(match["arguments"]) if name not in {"self", "cls"}]
            yield Source(document, code, arguments[0] if arguments else None)


def _passages(text: str) -> Iterator[str]:
    """Yield paragraphs of a text in rows of about PASSAGE_CHARACTERS."""
    least, most = PASSAGE_CHARACTERS
    held = ""
    for paragraph in text.split("\n\n"):
        if len(held) + len(paragraph) > most and len(held) >= least:
            yield held
            held = ""
        held = f"{held}\n\n{paragraph}" if held else paragraph[:most]
    if len(held) >= least:
        yield held

"""`tokc run`: chat in the terminal."""

import signal
import sys
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

import typer

from tokc.runtime.speculation.config import SpeculativeConfig

if TYPE_CHECKING:
    from tokc.runtime.chat import Message
    from tokc.runtime.engine import Engine
    from tokc.runtime.sequence import Delta, SamplingParams

Artifact = Annotated[Path, typer.Argument(help="A NAME.tokc folder.", show_default=False)]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads. [default: every core]")]

Speculative = Annotated[
    SpeculativeConfig | None,
    typer.Option(
        "--speculative-config",
        parser=SpeculativeConfig.parse,
        metavar="JSON",
        help="""How to draft tokens, as in '{"method": "ngram"}'. The answers are the same.""",
    ),
]


def run(
    artifact: Artifact,
    *,
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="Answer this and end.")] = None,
    system: Annotated[str | None, typer.Option(help="What the model is told first.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = 512,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Keep the likeliest tokens of this mass.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.")] = None,
    threads: Threads = None,
    speculative: Speculative = None,
) -> None:
    """Chat with a model, or answer one prompt. Ctrl-C stops an answer; /quit ends."""
    import tokc
    from tokc.runtime.sequence import SamplingParams

    params = SamplingParams(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed)
    first: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    with tokc.load(artifact, threads=threads, speculative_config=speculative) as engine:
        if prompt is not None:
            _answer(engine, [*first, {"role": "user", "content": prompt}], params)
        else:
            _chat(engine, first, params)


def _chat(engine: "Engine", first: "list[Message]", params: "SamplingParams") -> None:
    """Talk until /quit or the end of input."""
    typer.echo(f"{engine.name}; /new starts over, /quit ends, Ctrl-C stops an answer", err=True)
    messages = list(first)
    while True:
        try:
            text = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            typer.echo(" (/quit ends)", err=True)
            continue
        if text == "/quit":
            return
        if text == "/new":
            messages = list(first)
        elif text:
            messages.append({"role": "user", "content": text})
            messages.append({"role": "assistant", "content": _answer(engine, messages, params)})


def _answer(engine: "Engine", messages: "list[Message]", params: "SamplingParams") -> str:
    """Stream one answer to the terminal and return it; Ctrl-C ends it early."""
    pieces: list[str] = []
    stream = _stream(engine, messages, params)
    with _Interrupts() as interrupts:
        for delta in stream:
            pieces.append(delta.text)
            sys.stdout.write(delta.text)
            sys.stdout.flush()
            if interrupts.count:
                typer.echo(" (stopped)", nl=False, err=True)
                break
    stream.close()
    sys.stdout.write("\n")
    return "".join(pieces)


def _stream(
    engine: "Engine", messages: "list[Message]", params: "SamplingParams"
) -> "Generator[Delta, None, None]":
    """Ask as a chat, or plainly if the model has no chat template."""
    if engine.chat_template is None:
        yield from engine.stream(str(messages[-1]["content"]), params)
    else:
        yield from engine.stream_chat(messages, params)


class _Interrupts:
    """Counts Ctrl-C between two steps instead of breaking into one; the second in a row ends the program."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGINT, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _receive(self, *_: object) -> None:
        self.count += 1
        if self.count > 1:
            raise KeyboardInterrupt

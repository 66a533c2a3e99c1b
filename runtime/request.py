"""Turns the tokens of one request into the deltas that its caller reads."""

from collections import deque
from collections.abc import Callable

from tokc.errors import EngineStopped, RequestRefused
from tokc.runtime.core import Event
from tokc.runtime.sequence import Delta, FinishReason, Logprob, Result, Sequence
from tokc.runtime.tokenizer import StopFilter, TextStream, Tokenizer


class Request:
    """Written by the thread that steps, read by the caller; `notify` is called after each write."""

    def __init__(self, sequence: Sequence, tokenizer: Tokenizer) -> None:
        """Start with nothing said."""
        self.sequence = sequence
        self.deltas: deque[Delta] = deque()
        self.notify: Callable[[], object] = lambda: None
        self.error: BaseException | None = None
        self.finish_reason: FinishReason | None = None
        self._text = TextStream(tokenizer, sequence.tokens)
        self._stop = StopFilter(sequence.params.stop)
        self._pieces: list[str] = []
        self._received = 0
        self._logprobs: list[Logprob] = []

    @property
    def done(self) -> bool:
        """Say whether nothing more will come."""
        return self.finish_reason is not None

    def receive(self, event: Event) -> None:
        """Add one token; a stop string may end the request."""
        sequence, reason = self.sequence, event.finish_reason
        if sequence.matcher is not None and sequence.matcher.error is not None:
            raise sequence.matcher.error
        self._received += 1
        text = "" if reason == "stop" else self._text.push(event.token)
        if reason is not None:
            text += self._text.finish()
        if self._received > sequence.params.min_tokens:
            text = self._stop.push(text)
        if self._stop.stopped:
            reason = sequence.finish_reason = "stop"
            # A draft that held may have made more tokens in the same step.
            del sequence.tokens[sequence.prompt_length + self._received :]
        elif reason is not None:
            text += self._stop.finish()
        self._pieces.append(text)
        logprobs: tuple[Logprob, ...] = ()
        if event.logprob is not None:
            self._logprobs.append(event.logprob)
            logprobs = (event.logprob,)
        self.deltas.append(Delta(text, (event.token,), logprobs, reason))
        self._end(reason)

    def abort(self) -> None:
        """End the request where it is."""
        self._end("abort")

    def fail(self, error: BaseException) -> None:
        """End the request with an error, raised where its caller waits."""
        self.error = error
        self._end("abort")

    def check(self) -> None:
        """Raise what ended the request, if it was an error."""
        if isinstance(self.error, RequestRefused):
            raise self.error
        if self.error is not None:
            raise EngineStopped(f"the request failed: {self.error}") from self.error

    def result(self) -> Result:
        """Return the whole answer of a request that is done."""
        self.check()
        assert self.finish_reason is not None, "only a finished request has a result"
        sequence = self.sequence
        return Result(
            text="".join(self._pieces),
            token_ids=tuple(sequence.output),
            logprobs=tuple(self._logprobs) if sequence.params.logprobs is not None else None,
            finish_reason=self.finish_reason,
            usage=sequence.usage,
            timing=sequence.timing,
        )

    def _end(self, reason: FinishReason | None) -> None:
        self.finish_reason = reason
        self.notify()

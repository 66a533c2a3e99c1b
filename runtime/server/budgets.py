"""How much a key may still ask for: a bucket that fills steadily and holds a minute's worth."""

import math
import time
from collections.abc import Callable

from tokc.runtime.server.errors import ApiError, too_many
from tokc.runtime.server.keys import Key

MINUTE_S = 60.0


class Bucket:
    """Holds up to `per_minute` and gains that much a minute."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Start full."""
        self.per_minute = per_minute
        self._clock = clock
        self._level = float(per_minute)
        self._then_s = clock()

    @property
    def level(self) -> float:
        """Return what is in it; less than nothing is a debt."""
        now_s = self._clock()
        gained = (now_s - self._then_s) * self.per_minute / MINUTE_S
        self._level, self._then_s = min(self._level + gained, float(self.per_minute)), now_s
        return self._level

    def take(self, amount: float) -> None:
        """Take, even what is not there."""
        self._level = self.level - amount

    def seconds_until(self, amount: float) -> int:
        """Return the whole seconds until `amount`, or as much as it holds, is in it; 0 if it is."""
        missing = min(amount, float(self.per_minute)) - self.level
        return max(math.ceil(missing * MINUTE_S / self.per_minute), 0)


class Budget:
    """The requests and tokens of one name."""

    def __init__(self, key: Key, clock: Callable[[], float] = time.monotonic) -> None:
        """Take the limits of a key."""
        self._name = key.name
        requests, tokens = key.requests_per_minute, key.tokens_per_minute
        self._requests = None if requests is None else Bucket(requests, clock)
        self._tokens = None if tokens is None else Bucket(tokens, clock)

    def request(self) -> None:
        """Count a request.

        Raises: ApiError with 429 if the minute's are used up.
        """
        if self._requests is not None:
            if wait_s := self._requests.seconds_until(1):
                raise self._refusal("requests", self._requests, wait_s)
            self._requests.take(1)

    def spend(self, tokens: int) -> None:
        """Count a prompt's tokens.

        Raises: ApiError with 429 if the minute's are used up; a longer prompt than that waits for all.
        """
        if self._tokens is not None:
            if wait_s := self._tokens.seconds_until(tokens):
                raise self._refusal("tokens", self._tokens, wait_s)
            self._tokens.take(tokens)

    def owe(self, tokens: int) -> None:
        """Count an answer's tokens, which nobody knew before; the next request waits for a debt."""
        if self._tokens is not None:
            self._tokens.take(tokens)

    def _refusal(self, what: str, bucket: Bucket, wait_s: int) -> ApiError:
        used = f"the key '{self._name}' has used its {bucket.per_minute} {what} a minute"
        return too_many(f"{used}; come back in {wait_s} s", retry_after_s=wait_s)

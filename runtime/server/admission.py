"""Lets in as many sequences as can run and wait, and none once the server stops."""

import asyncio
import math

from tokc.runtime.server.errors import ApiError, invalid, too_many, unavailable

LONGEST_RETRY_S = 120
WEIGHT_OF_NEWEST = 0.1
POLL_S = 0.02


class Admission:
    """Counts the sequences that were let in and have not ended. Used in one event loop."""

    def __init__(self, *, places: int, max_queue: int) -> None:
        """Allow `places` sequences to run and `max_queue` to wait."""
        self.places, self.max_queue = places, max_queue
        self.open = 0
        self.draining = False
        self.cutoff = asyncio.Event()
        self._mean_s = 1.0

    def check(self, count: int) -> None:
        """Say whether `count` sequences more may come.

        Raises: ApiError with 503 if the server stops, 429 if the queue is full, 400 if it never could be.
        """
        most = self.places + self.max_queue
        if self.draining:
            raise self.stopping()
        if count > most:
            raise invalid(f"the request asks for {count} answers, expected at most {most}", "n")
        if self.open + count > most:
            waiting = max(self.open - self.places, 0)
            retry_s = math.ceil(self._mean_s * (waiting + count) / self.places)
            raise too_many(
                f"the queue is full: {waiting} of {self.max_queue} places are taken",
                retry_after_s=min(max(retry_s, 1), LONGEST_RETRY_S),
                code="queue_full",
            )

    def enter(self, count: int) -> None:
        """Let in `count` sequences; each `leave`s once."""
        self.check(count)
        self.open += count

    def leave(self, count: int, seconds: float) -> None:
        """Give back the places of `count` sequences that took `seconds`."""
        self.open -= count
        assert self.open >= 0, "a place is given back twice"
        self._mean_s += WEIGHT_OF_NEWEST * (seconds - self._mean_s)

    async def drain(self, deadline_s: float) -> bool:
        """Let nobody in, wait for those inside, cut them off after the deadline; returns whether none was."""
        self.draining = True
        finished = await self._until_empty(deadline_s)
        if not finished:
            self.cutoff.set()
            await self._until_empty(1.0)
        return finished

    def stopping(self) -> ApiError:
        """Return what a client of a server that stops is told."""
        return unavailable("the server is stopping", code="stopping")

    async def _until_empty(self, seconds: float) -> bool:
        end_s = asyncio.get_running_loop().time() + seconds
        while self.open and asyncio.get_running_loop().time() < end_s:
            await asyncio.sleep(POLL_S)
        return self.open == 0

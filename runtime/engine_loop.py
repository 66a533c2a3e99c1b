"""Who makes the steps: whoever waits for an answer, until `start` hands that to a thread of its own."""

import threading
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Items
from functools import partial

from tokc.errors import EngineStopped
from tokc.runtime.core import Core, Event
from tokc.runtime.request import Request
from tokc.runtime.sequence import Sequence


class EngineLoop:
    """Takes requests from any thread and steps the core from one at a time."""

    def __init__(self, core: Core) -> None:
        """Start without a thread."""
        self.core = core
        self.failure: BaseException | None = None
        self._requests: dict[Sequence, Request] = {}
        self._inbox: deque[Callable[[], None]] = deque()
        self._step_lock = threading.Lock()
        self._news = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closing = False

    @property
    def unseen(self) -> int:
        """Return how many messages no step has read yet."""
        return len(self._inbox)

    def start(self) -> None:
        """Let a thread drive the steps from now on."""
        with self._news:
            if self._thread is None and not self._closing:
                self._thread = threading.Thread(target=self._serve, name="tokc-engine", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Abort what runs and stop the thread; calling it again is allowed."""
        with self._news:
            self._closing = True
            self._news.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        with self._step_lock:
            self._fail(EngineStopped("the engine was closed"))

    def step(self) -> int:
        """Do one step for all requests and return how many tokens it made."""
        with self._step_lock:
            return self._step()

    def submit(self, request: Request) -> None:
        """Queue a request.

        Raises: EngineStopped.
        """
        with self._news:
            if self._closing:
                raise EngineStopped("the engine is closed")
            if self.failure is not None:
                raise EngineStopped(f"the engine failed: {self.failure}") from self.failure
            self._inbox.append(partial(self._enter, request))
            if self._thread is not None:
                self._news.notify_all()

    def abort(self, requests: Items[Request]) -> None:
        """Give back the pages of requests that did not end; a step that is running is not waited for."""
        with self._news:
            self._inbox.extend(partial(self._drop, request) for request in requests if not request.done)
            self._news.notify_all()
        if self._thread is None and self._step_lock.acquire(blocking=False):
            try:
                self._read_inbox()
            finally:
                self._step_lock.release()

    def advance(self, request: Request) -> None:
        """Wait for news of a request: make a step, unless the thread does."""
        if self._thread is not None:
            with self._news:
                self._news.wait_for(lambda: request.done or request.deltas or self._closing, timeout=1)
            return
        with self._step_lock:
            if not request.done and not request.deltas:
                self._step()

    def _serve(self) -> None:
        while True:
            with self._news:
                self._news.wait_for(lambda: self._closing or self._inbox or not self.core.idle)
                if self._closing:
                    return
            try:
                self.step()
            except BaseException:  # every request was told, and `failure` says it to those that come
                return
            finally:
                with self._news:
                    self._news.notify_all()

    def _step(self) -> int:
        try:
            self._read_inbox()
            events = self.core.step()
        except BaseException as error:
            if self._thread is not None:
                with self._news:  # from here on nobody enters whom `_fail` would not see
                    self.failure = error
            self._fail(error)
            raise
        for event in events:
            self._deliver(event)
        return len(events)

    def _read_inbox(self) -> None:
        while self._inbox:
            self._inbox.popleft()()

    def _deliver(self, event: Event) -> None:
        request = self._requests.get(event.sequence)
        if request is None:
            return
        try:
            request.receive(event)
        except Exception as error:  # one answer that cannot be written is not the others' fault
            request.fail(error)
        if request.done:
            del self._requests[event.sequence]
            self.core.finish(event.sequence)

    def _enter(self, request: Request) -> None:
        self._requests[request.sequence] = request
        self.core.add(request.sequence)

    def _drop(self, request: Request) -> None:
        if self._requests.pop(request.sequence, None) is not None:
            self.core.finish(request.sequence)
            request.abort()

    def _fail(self, error: BaseException) -> None:
        """End every request with an error."""
        self._read_inbox()
        for sequence, request in list(self._requests.items()):
            self.core.finish(sequence)
            request.fail(error)
        self._requests.clear()

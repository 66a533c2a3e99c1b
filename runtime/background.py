"""Work in a thread of its own, whose result is fetched later.

`concurrent.futures` does the same and more; importing it takes as long as reading a small model.
"""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Background(Generic[T]):
    """Runs a function at once, in a thread that does not keep the program alive."""

    def __init__(self, work: Callable[[], T]) -> None:
        """Start `work`."""
        self._work = work
        self._value: T
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="tokc-load", daemon=True)
        self._thread.start()

    def result(self) -> T:
        """Wait, then return what the function returned or raise what it raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._value

    def _run(self) -> None:
        try:
            self._value = self._work()
        except BaseException as error:
            self._error = error

"""Headless Chromium through its DevTools protocol over a pipe, so that a test can point, click and listen."""

import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run")
FREE_FD = 10  # from which bash can move a pipe to 3 and 4, where the browser looks for it
TIMEOUT_S = 120.0
LISTENED = ("Page", "Network", "Runtime", "Log")


class Page:
    """One page of a browser; `events` are all that it reported."""

    def __init__(self, read: int, write: int) -> None:
        """Open a page over the browser's pipes."""
        self._read, self._write = read, write
        self._rest, self._number, self._session = b"", 0, ""
        self.events: list[dict[str, Any]] = []
        self.width = 0
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in LISTENED:
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: object) -> Any:
        """Return what a method of the protocol answers."""
        self._number += 1
        asked: dict[str, object] = {"id": self._number, "method": method, "params": parameters}
        session = {"sessionId": self._session} if self._session else {}
        os.write(self._write, json.dumps(asked | session).encode() + b"\0")
        while (answer := self._next()).get("id") != self._number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def show(self, path: Path, width: int, scheme: str) -> None:
        """Load a file at a width in CSS pixels, `dark` or `light`, and wait until it is there."""
        self.width = width
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.events.clear()
        self.call("Page.navigate", url=path.resolve().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())

    def ask(self, expression: str) -> Any:
        """Return what a JavaScript expression is, as JSON has it."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def click(self, x: float, y: float) -> None:
        """Press and release the mouse at a place of the window."""
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def _next(self) -> Any:
        end_s = time.monotonic() + TIMEOUT_S
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._read], [], [], max(0.0, end_s - time.monotonic()))
            assert ready, f"the browser said nothing for {TIMEOUT_S:.0f} s"
            more = os.read(self._read, 1 << 16)
            assert more, "the browser ended"
            self._rest += more
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)


@contextmanager
def opened(profile: Path) -> Iterator[Page]:
    """Start a browser with an empty profile in a folder; it ends with the block."""
    assert CHROMIUM is not None, "ask for it first"
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    there = [fcntl.fcntl(fd, fcntl.F_DUPFD, FREE_FD) for fd in (theirs_in, theirs_out)]
    moved = f'exec "$0" "$@" 3<&{there[0]} 4>&{there[1]}'
    command = ["bash", "-c", moved, CHROMIUM, *OPTIONS, f"--user-data-dir={profile}"]
    process = subprocess.Popen(command, pass_fds=there, stderr=subprocess.DEVNULL)
    for fd in (theirs_in, theirs_out, *there):
        os.close(fd)
    try:
        yield Page(ours_in, ours_out)
    finally:
        process.kill()
        process.wait()
        os.close(ours_in)
        os.close(ours_out)

"""A page in a real browser without a window: Chromium, spoken to over two pipes (the DevTools protocol)."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def find_browser() -> str | None:
    """The browser's program, or None where there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """An open page: `evaluate` JavaScript in it."""

    def __init__(self, write: int, read: int):
        self._write, self._read, self._number, self._buffer, self._session = write, read, 0, b"", None

    def call(self, method: str, seconds: float = 60, **parameters):
        """The result of a method of the protocol."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + seconds
        while True:
            while b"\0" not in self._buffer:
                ready = select.select([self._read], [], [], max(0.0, end - time.monotonic()))[0]
                assert ready, f"the browser does not answer {method}"
                part = os.read(self._read, 2**20)
                assert part, "the browser is gone"
                self._buffer += part
            line, _, self._buffer = self._buffer.partition(b"\0")
            answer = json.loads(line)
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def attach(self, url: str) -> None:
        """Open a page, and wait for it."""
        target = self.call("Target.createTarget", url=url)["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        # before it the window holds an empty page, which is complete as well
        self.wait(f"document.readyState === 'complete' && location.href === {json.dumps(url)}")

    def evaluate(self, code: str):
        """The value of an expression, as JSON has it."""
        found = self.call("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, code: str, seconds: float = 60) -> None:
        """Until an expression is true."""
        end = time.monotonic() + seconds
        while not self.evaluate(code):
            assert time.monotonic() < end, f"not true within {seconds} s: {code}"
            time.sleep(0.1)

    def resize(self, width: int, height: int) -> None:
        """The size of the window, in pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )


@contextlib.contextmanager
def opened(url: str, home: Path) -> Iterator[Page]:
    """The page of an address, in a browser of its own whose files lie in `home`."""
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    # It reads from descriptor 3 and writes to 4.
    command = f'exec 3<&{theirs_in} 4>&{theirs_out}; exec "$@"'
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-unsafe-swiftshader", "--no-first-run"]
    flags += ["--remote-debugging-pipe", f"--user-data-dir={home}", "about:blank"]
    with open(home / "browser.log", "wb") as log:
        process = subprocess.Popen(
            ["bash", "-c", command, "bash", find_browser(), *flags],
            pass_fds=(theirs_in, theirs_out),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        page = Page(ours_out, ours_in)
        page.attach(url)
        yield page
    finally:
        process.kill()
        process.wait()
        os.close(ours_out)
        os.close(ours_in)

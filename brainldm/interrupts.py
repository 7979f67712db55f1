"""A wish to stop, from SIGTERM or Ctrl-C, that a loop sees when it can stop with everything saved."""

from __future__ import annotations

import signal


class StopRequest:
    """Inside the `with`, SIGTERM and Ctrl-C set `requested` instead of ending the process.

    Outside the main thread, where Python allows no handlers, nothing changes.
    """

    def __init__(self):
        self.requested = False
        self._before = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                self._before[number] = signal.signal(number, self._request)
            except ValueError:
                pass
        return self

    def __exit__(self, kind, error, trace) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _request(self, number, frame) -> None:
        self.requested = True

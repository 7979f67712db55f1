"""The errors a person sees. Each carries the exit code that the command line ends with."""

from __future__ import annotations


class BrainldmError(Exception):
    """Our failure: something that should not have happened. Exit code 1."""

    exit_code = 1


class UserError(BrainldmError):
    """The user's mistake. The message is one paragraph: what, where, why and what to do. Exit code 2."""

    exit_code = 2


class Stopped(BrainldmError):
    """Stopped from outside with everything saved; the same command goes on from here. Exit code 75."""

    exit_code = 75


class PeerLost(BrainldmError):
    """Another process of the run is gone; started again, the run goes on from its last checkpoint. Exit code 75."""

    exit_code = 75


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its kind when it says nothing; the middle of a long one is left out."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line if len(line) < 300 else f"{line[:100]} ... {line[-180:]}"  # the file system's word comes last

"""What a person is told of errors that the machine raises and a person can mend."""

from __future__ import annotations

import errno
from concurrent.futures import BrokenExecutor

from brainldm.runtime.errors import BrainldmError, first_line

_FULL = (errno.ENOSPC, errno.EDQUOT)

_ENVIRONMENT = {
    **dict.fromkeys(_FULL, "Make room, delete what this run has begun to write, and give the command again."),
    **dict.fromkeys((errno.EACCES, errno.EPERM), "Change the permissions, or give another path."),
    errno.EROFS: "Give a path on a file system that can be written to.",
    errno.ENAMETOOLONG: "Give a shorter path.",
    errno.ENOTDIR: "Give a path whose folders are folders.",
    errno.EISDIR: "It is a folder where a file is wanted. Move it away, or give another path.",
    errno.ELOOP: "It is a symbolic link that leads to itself. Remove it.",
    errno.ENXIO: "It is a pipe, a socket or a device where a file is wanted. Give another path.",
    errno.EIO: "The disk or the network mount failed. Give the command again when it works.",
    errno.ESTALE: "The network mount was taken away. Give the command again when it is back.",
    errno.EMFILE: "Raise the limit of open files (ulimit -n), or ask for fewer workers.",
}
"""What to do about errors of the operating system that a command meets and a person can mend."""

_OURS = (*_FULL, errno.EIO, errno.ESTALE, errno.EMFILE)
"""Nothing that was asked is wrong: exit code 1."""


def told(error: BaseException) -> tuple[str, int] | None:
    """What to say of an error, one paragraph, and the exit code; None where it is a fault of the program, whose trace
    is wanted."""
    if isinstance(error, BrainldmError | FloatingPointError):
        return f"{error}", getattr(error, "exit_code", 1)
    if isinstance(error, OSError) and error.errno in _ENVIRONMENT:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}. {_ENVIRONMENT[error.errno]}", 1 if error.errno in _OURS else 2
    if isinstance(error, UnicodeEncodeError):
        return (
            f"{error.object[error.start : error.end]!r} cannot be written in the encoding {error.encoding} of this "
            "shell. Set LC_ALL=C.UTF-8 and PYTHONUTF8=1, and give the command again.",
            2,
        )
    if isinstance(error, MemoryError):
        return f"out of memory ({first_line(error)}). Ask for less at a time, or use a machine with more.", 1
    if isinstance(error, BrokenExecutor):
        return (
            "a worker process was ended from outside, most often because memory ran out. What is on disk is whole; "
            "give the command again with fewer --workers.",
            1,
        )
    if isinstance(error, RuntimeError) and "Unable to initialize backend" in str(error):
        return (
            f"JAX cannot use the platform that it was told to: {first_line(error)}. Set JAX_PLATFORMS to cpu, cuda or "
            "tpu, whichever this machine has, or leave it out.",
            2,
        )
    return None

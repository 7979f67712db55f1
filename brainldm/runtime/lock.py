"""One run in a folder at a time."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from brainldm.runtime.console import log
from brainldm.runtime.errors import UserError

LOCK = "brainldm.lock"


@contextlib.contextmanager
def locked(folder: str | Path, name: str = LOCK, keep: bool = True) -> Iterator[None]:
    """Hold the lock of `folder` (made if it is absent), a lock of the operating system on its file `name`.

    The system lets go of it when the process ends, however it ends, so the file that stays behind locks nothing;
    without `keep` it is removed at the end. On a file system without locks (some network mounts) there is a warning
    and no protection. Raises UserError when another process holds it.
    """
    folder = Path(folder)
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    handle = _acquire(folder, name)
    try:
        with contextlib.suppress(OSError):  # a full disk: the lock itself needs no room
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        empty = made and {path.name for path in folder.iterdir()} == {name}  # nothing came of it
        if empty or not keep:
            (folder / name).unlink(missing_ok=True)
        if empty:
            folder.rmdir()
        os.close(handle)


def _acquire(folder: Path, name: str) -> int:
    while True:
        handle = os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(handle, 200, 0).decode(errors="replace").strip() or "another process"
            os.close(handle)
            raise UserError(
                f"{folder}: another run is at work in it ({holder}). Wait for it or stop it, or give another folder."
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
                os.close(handle)
                raise
            log(f"{folder}: this file system has no locks. See to it yourself that just one run works in it.")
        try:
            if os.path.samestat(os.fstat(handle), os.stat(folder / name)):
                return handle
        except FileNotFoundError:
            folder.mkdir(parents=True, exist_ok=True)
        os.close(handle)  # whoever held it has deleted the file meanwhile

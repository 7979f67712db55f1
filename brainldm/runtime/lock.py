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
from brainldm.runtime.files import require_new_folder

LOCK = "brainldm.lock"

UNFINISHED = "brainldm.unfinished"
"""Lock of a folder that is being filled for the first time; it is deleted when the folder is whole."""


def require_own_folder(folder: str | Path, marker: str) -> Path:
    """`folder` when it does not exist, holds no more than locks, or the file `marker` that makes it ours to go on with.

    Raises UserError otherwise.
    """
    folder = Path(folder)
    if folder.is_dir() and all(path.name.startswith(LOCK) for path in folder.iterdir()):
        return folder
    return require_new_folder(folder, marker)


@contextlib.contextmanager
def locked(folder: str | Path, name: str = LOCK, keep: bool = True) -> Iterator[None]:
    """Hold the lock of `folder` (made if it is absent), a lock of the operating system on its file `name`.

    The system lets go of it when the process ends, however it ends, so the file that stays behind locks nothing;
    without `keep` it is removed at the end. On a file system without locks (some network mounts) there is a warning
    and no protection. Raises UserError when another process holds it, or the folder cannot be written to.
    """
    folder = Path(folder)
    with _held(folder, name) as handle:
        _sign(handle)
        try:
            yield
        finally:
            if not keep:
                (folder / name).unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(folder: str | Path) -> Iterator[Path]:
    """Make `folder` and hold it while it is filled, by one process at a time, as `locked` does.

    While it is filled, and when that was cut off, it holds the file UNFINISHED; a whole one does not. Raises UserError
    when the folder holds something, is what an unfinished run left, is held by another process, or cannot be written
    to. A folder that nothing was written into does not stay.
    """
    folder = require_new_folder(folder, own=UNFINISHED)
    with _held(folder, UNFINISHED) as handle:
        before = os.pread(handle, 200, 0).decode(errors="replace").strip()
        if any(path.name != UNFINISHED for path in folder.iterdir()):
            if not before:  # another run finished it between the look and the lock
                (folder / UNFINISHED).unlink()
                require_new_folder(folder)
            raise UserError(
                f"{folder}: is what an unfinished run ({before}) left, and no run goes on from it. Delete it, or "
                "choose another folder."
            )
        _sign(handle)
        yield folder
        (folder / UNFINISHED).unlink(missing_ok=True)


@contextlib.contextmanager
def _held(folder: Path, name: str) -> Iterator[int]:
    """A file descriptor that holds the lock on `folder`/`name`. A folder made for it goes when it stays empty."""
    made = not folder.exists()
    handle = _acquire(folder, name)
    try:
        yield handle
    finally:
        if {path.name for path in folder.iterdir()} <= {name} and (made or name == UNFINISHED):  # nothing came of it
            (folder / name).unlink(missing_ok=True)
            if made:
                folder.rmdir()
        os.close(handle)


def _sign(handle: int) -> None:
    with contextlib.suppress(OSError):  # a full disk: the lock itself needs no room
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)


def _acquire(folder: Path, name: str) -> int:
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if (handle := _open(folder / name)) is None:
                continue
        except OSError as error:
            raise UserError(
                f"{folder}: cannot be written to ({error.strerror}). Give a folder in a place where you may write."
            ) from error
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
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), os.stat(folder / name)):
                return handle
        os.close(handle)  # whoever held it has deleted the file meanwhile


def _open(path: Path) -> int | None:
    """A file descriptor, or None when the folder of the file was deleted by whoever held it."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except FileNotFoundError:
        return None

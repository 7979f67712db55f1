"""Files written whole or not at all, read with clear errors, and hashed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import stat
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from brainldm.runtime.errors import BrainldmError, UserError

SUMS = "SHA256SUMS"
"""The file of a folder's checksums, in the format of sha256sum."""
_HASHING_THREADS = 4
_ROOM = 2**16
_LONGEST_NAME = 240  # of the 255 that file systems take; temporary files have longer ones

MAX_READ = 2**28
"""Bytes of a file that is read whole: tables, descriptions, records."""


def write_atomically(path: str | os.PathLike, content: bytes | Iterable[bytes]) -> None:
    """Write a whole file or none: into a temporary file of the same folder, flushed, then renamed.

    `content` can come in parts, which need not be in memory together.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.writelines((content,) if isinstance(content, bytes | bytearray | memoryview) else content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def clear_temporaries(folders: Iterable[Path], name: str = "") -> None:
    """Remove what a killed `write_atomically` (of the file `name`, if given) left half-written in `folders`."""
    for folder in folders:
        if folder.is_dir():
            for path in folder.glob(f".{name}*.tmp"):
                path.unlink(missing_ok=True)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def write_json(path: str | Path, content: Any) -> None:
    """Write JSON, indented, whole or not at all."""
    write_atomically(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def open_regular(path: str | Path) -> io.BufferedReader:
    """A file opened to read its bytes. Raises OSError when it cannot be, UserError when it is no regular file.

    A pipe would be waited for without end, and a device read without end.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(handle).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(handle, "rb")
    os.close(handle)
    what = "a folder" if stat.S_ISDIR(mode) else "a pipe, a socket or a device"
    raise UserError(f"{path}: cannot be read, it is {what} where a file is wanted. Remove it or give another path.")


def read_file(path: str | Path, most: int = MAX_READ) -> bytes:
    """The content of a file of at most `most` bytes.

    Raises UserError when it is absent, cannot be read, is larger, or is no regular file.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > most:
                raise UserError(f"{path}: {size} bytes; nothing of this kind is larger than {most}.")
            return file.read(most)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        said = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be read ({said}). Check the path and its permissions.") from error


def parse_json(content: bytes | str, where: str | Path) -> Any:
    """Parse JSON. Raises UserError, which names `where`, for what is none."""
    try:
        return json.loads(content.decode("utf-8-sig") if isinstance(content, bytes) else content)
    except RecursionError:
        raise UserError(f"{where}: not valid JSON (nested too deep to be read).") from None
    except ValueError as error:
        raise UserError(f"{where}: not valid JSON ({error}).") from error


def parse_line(line: str) -> dict[str, Any]:
    """The table of a line of a JSONL file, empty for a line that holds none, as one that a kill cut off."""
    try:
        content = parse_json(line, "")
    except UserError:
        return {}
    return content if isinstance(content, dict) else {}


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a JSON file that holds a table of names and values, as all of ours do.

    Raises UserError when it is absent, cannot be read (`read_file`), is not JSON, or holds something else.
    """
    content = parse_json(read_file(path), path)
    if not isinstance(content, dict):
        raise UserError(
            f"{path}: holds a {type(content).__name__} where a table of names and values is wanted. It was not written "
            "by this program, or was damaged since."
        )
    return content


def require_new_folder(path: str | Path, own: str | None = None) -> Path:
    """`path` when it does not exist, is empty, or holds the file `own` that marks it as ours to continue.

    Raises UserError otherwise, so that nothing is ever overwritten.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise UserError(f"{path}: is a file. Give a folder that does not exist yet.")
    if path.is_dir() and any(path.iterdir()) and not (own and (path / own).exists()):
        raise UserError(f"{path}: already holds something else, and nothing is overwritten. Choose another folder.")
    return path


def require_writable(path: str | Path) -> None:
    """Raise UserError unless files can be written into the folder `path` or, where it is none yet, made there;
    BrainldmError where the disk is full.

    Looked at by writing: permissions alone say nothing of full disks, network mounts and long names. What is written
    is removed again. For commands that work long before they have something to write.
    """
    path, made = Path(path), []
    try:
        if path.exists() and not path.is_dir():
            raise UserError(f"{path}: is a file, so that it cannot be written to as a folder. Give a folder.")
        made = [folder for folder in (path, *path.parents) if not folder.exists()]
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path, prefix=".brainldm.", suffix=".tmp") as file:
            file.write(bytes(_ROOM))
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)  # nothing that was asked is wrong then
        raise (BrainldmError if full else UserError)(
            f"{path}: cannot be written to ({error.strerror}). Give a path in a place where you may write and there "
            "is room."
        ) from error
    except ValueError as error:  # a NUL in the name
        raise UserError(f"{path!s:.200}: is no path ({error}).") from error
    finally:
        for folder in made:
            with contextlib.suppress(OSError, ValueError):  # another run has begun in it meanwhile, or it was not made
                folder.rmdir()


def require_writable_file(path: str | Path) -> None:
    """Raise UserError unless a file can be written to `path`, as `require_writable` does for a folder."""
    path = Path(path)
    if len(os.fsencode(path.name)) > _LONGEST_NAME:
        raise UserError(f"{path}: its name is longer than {_LONGEST_NAME} bytes. Give a shorter one.")
    require_writable(path.parent)
    if path.is_dir():
        raise UserError(f"{path}: is a folder. Give the path of a file.")


def file_sha256(path: Path) -> str | None:
    """SHA-256 of a file, or None when it cannot be read or is no regular file."""
    try:
        with open_regular(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, UserError):
        return None


def write_sums(folder: str | Path, names: Sequence[str]) -> bytes:
    """Write SHA256SUMS of the files `names` (relative to `folder`), in their order, and return its content.

    Raises OSError when a file cannot be read back.
    """
    folder = Path(folder)
    with ThreadPoolExecutor(_HASHING_THREADS) as pool:
        digests = list(pool.map(file_sha256, [folder / name for name in names]))
    unread = [name for name, digest in zip(names, digests, strict=True) if digest is None]
    if unread:
        raise OSError(f"{folder / unread[0]} cannot be read back")
    content = "".join(f"{digest}  {name}\n" for name, digest in zip(names, digests, strict=True)).encode()
    write_atomically(folder / SUMS, content)
    return content


def read_sums(content: bytes) -> dict[str, str]:
    """What a SHA256SUMS says: {name: SHA-256}."""
    lines = content.decode(errors="replace").splitlines()
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def verify_sums(folder: str | Path, sums: Mapping[str, str], names: Iterable[str] | None = None) -> dict[str, str]:
    """What is wrong with the files `names` (None: all that are in `sums`) of `folder`, by name; nothing when they are
    those that were written.

    A file is "missing" (also from `sums`), "cannot be read" or "changed". Every file is read whole.
    """
    folder = Path(folder)

    def problem(name: str) -> str | None:
        if not name or name not in sums or not os.path.exists(folder / name):
            return "missing"
        found = file_sha256(folder / name)
        return "cannot be read" if found is None else None if found == sums[name] else "changed"

    names = list(sums if names is None else names)
    with ThreadPoolExecutor(_HASHING_THREADS) as pool:
        return {name: what for name, what in zip(names, pool.map(problem, names), strict=True) if what}

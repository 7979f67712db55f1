"""Files written whole or not at all, read with clear errors, and hashed."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from brainldm.runtime.errors import UserError


def write_atomically(path: str | os.PathLike, content: bytes) -> None:
    """Write a whole file or none: into a temporary file of the same folder, flushed, then renamed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def write_json(path: str | Path, content: Any) -> None:
    """Write JSON, indented, whole or not at all."""
    write_atomically(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def read_json(path: str | Path) -> Any:
    """Read JSON. Raises UserError when the file is absent or not JSON."""
    try:
        return json.loads(Path(path).read_text())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}).") from error


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


def file_sha256(path: Path) -> str | None:
    """SHA-256 of a file, or None when it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None

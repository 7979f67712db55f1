"""Compiled programs kept between runs, so that the next start of a command does not wait for the compiler.

$XDG_CACHE_HOME/brainldm/programs/          (~/.cache/brainldm/programs)
  jaxlib-0.10.2-1a2b3c4d/                   of one release of jaxlib and one kind of processor, filled by JAX

JAX finds a program by a hash of its code, the options of the compiler, jaxlib's version and the devices; it keeps none
that calls back into Python. The kind of processor is in the folder's name because a home is often shared by machines
that are not alike. What is kept is machine code and is run, so the folder must be its user's alone.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.metadata
import os
import platform
import zlib
from pathlib import Path

from brainldm.runtime.console import log

MOST_BYTES = 2**30

SHORTEST_SECONDS = 0.2
"""What compiles faster is not kept."""

_CHECKED = "checked"


def keep_programs() -> None:
    """Have JAX keep what it compiles from now on; call it before anything is compiled.

    The environment decides first: JAX_COMPILATION_CACHE_DIR names another folder, JAX_ENABLE_COMPILATION_CACHE=0 keeps
    nothing. Where the folder cannot be written to, or is not this user's alone, there is a warning and nothing is kept.
    """
    import jax  # only now: who tidies the folder needs none

    if jax.config.jax_compilation_cache_dir or not jax.config.jax_enable_compilation_cache:
        return
    try:
        folder = private_folder(cache_home() / "brainldm" / "programs")
    except OSError as error:
        log(f"{error.filename}: {error.strerror}. Compiled programs are not kept there; the next run compiles again.")
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", SHORTEST_SECONDS)


def quickly_compiled() -> dict[str, int]:
    """Options of the compiler for a program that runs once: `jax.jit(f, compiler_options=quickly_compiled())`.

    On a CPU they leave LLVM's optimisations out, which take most of the compilation; elsewhere there are none. Sums of
    products may differ from those of the optimised program in their last digit.
    """
    import jax

    return {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else {}


def cache_home() -> Path:
    """The user's folder for what can be made again. Raises OSError for a user without a home."""
    found = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if found.is_absolute():  # the standard has another one ignored
        return found
    try:
        return Path("~/.cache").expanduser()
    except RuntimeError:
        raise FileNotFoundError(errno.ENOENT, "this user has no home", "~/.cache") from None


def private_folder(root: Path, most_bytes: int = MOST_BYTES) -> Path:
    """The folder in `root` for the programs of this jaxlib and this processor, made if it is absent, and tidied up.

    Of all that `root` holds for any jaxlib and processor `most_bytes` stay, those that were used last, and nothing that
    was not written to its end. Other runs may be at it: what they take away, or write, is no error here, and JAX
    compiles what it does not find. Raises OSError where it cannot be written, or others than this user could write.
    """
    folder = root / f"jaxlib-{importlib.metadata.version('jaxlib')}-{_processor()}"
    for place in (root.parent, root, folder):
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = place.stat()
        if status.st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, "belongs to another user", str(place))
        if status.st_mode & 0o022:
            raise PermissionError(errno.EPERM, "can be written to by other users (chmod go-w helps)", str(place))
    _remove_parts(folder)
    size = 0
    for status, path in sorted(_files(root), key=lambda file: file[0].st_atime, reverse=True):
        size += status.st_size
        if size > most_bytes:
            path.unlink(missing_ok=True)
    return folder


def _processor() -> str:
    """Stands for what this processor can do."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    known = [line for line in lines if line.startswith(("flags", "Features"))] or [platform.machine()]
    return hashlib.sha256(known[0].encode()).hexdigest()[:8]


def _remove_parts(folder: Path) -> None:
    """Remove what a killed process has left of a program: JAX would warn of it in each run, and never replace it."""
    checked = folder / _CHECKED
    since = checked.stat().st_mtime if checked.exists() else 0.0
    checked.touch()  # also shows whether the folder can be written to
    for status, path in _files(folder.parent):
        if status.st_mtime >= since - 1 and path.parent == folder:  # JAX writes a file once
            with contextlib.suppress(FileNotFoundError):
                if not _whole(path.read_bytes()):
                    path.unlink()
                else:
                    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # this was no use of it


def _files(root: Path) -> list[tuple[os.stat_result, Path]]:
    """The programs of all folders in `root`."""
    files = []
    for path in root.glob("*/*"):
        with contextlib.suppress(FileNotFoundError):
            if path.is_file() and path.name != _CHECKED:
                files.append((path.stat(), path))
    return files


def _whole(content: bytes) -> bool:
    if not content.startswith(b"\x78"):  # not zlib's: another compression, or nothing yet
        return bool(content)
    try:
        zlib.decompress(content)
    except zlib.error:
        return False
    return True

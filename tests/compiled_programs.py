"""Compiled programs kept between runs of the tests: those of one release of jaxlib, for one kind of processor."""

import atexit
import contextlib
import hashlib
import importlib.metadata
import os
import shutil
import tempfile
import zlib
from pathlib import Path

MOST_BYTES = 2**29


def folder() -> Path:
    """The folder, tidied up; where nothing can be kept, one of this run alone."""
    try:
        return kept(Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "brainldm-tests")
    except (OSError, RuntimeError):  # no such place, not writable, no home
        alone = Path(tempfile.mkdtemp(prefix="brainldm_compiled_"))
        atexit.register(shutil.rmtree, alone, ignore_errors=True)
        return alone


def kept(cache: Path, most_bytes: int = MOST_BYTES) -> Path:
    """The folder below `cache` for this jaxlib and this processor; OSError where it cannot be written.

    Folders of others go, and what is not whole, and above most_bytes the files that were used longest ago. Other runs
    may be at it: what they take away, or write, is no error here, and JAX compiles what it does not find.
    """
    flags = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith(("flags", "Features"))]
    processor = hashlib.sha256("".join(flags[:1]).encode()).hexdigest()[:8]
    found = cache / f"jaxlib-{importlib.metadata.version('jaxlib')}-{processor}"
    found.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=found):
        pass
    for other in cache.iterdir():
        if other != found:
            shutil.rmtree(other, ignore_errors=True)
    size = 0
    for status, path in sorted(_files(found), key=lambda file: file[0].st_atime, reverse=True):
        with contextlib.suppress(FileNotFoundError):
            content = path.read_bytes()
            size += len(content)
            if size > most_bytes or not _whole(content):
                path.unlink()
            else:
                os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # this was no use of it
    return found


def _files(folder: Path) -> list[tuple[os.stat_result, Path]]:
    files = []
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            files.append((path.stat(), path))
    return files


def _whole(content: bytes) -> bool:
    """Whether an entry was written to its end. A killed process leaves a part, which JAX would warn of in each run."""
    if not content.startswith(b"\x78"):  # not zlib's: another compression, or nothing yet
        return bool(content)
    try:
        zlib.decompress(content)
    except zlib.error:
        return False
    return True

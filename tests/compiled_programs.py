"""The folder of the programs that the tests compile, kept between runs."""

import atexit
import shutil
import tempfile
from pathlib import Path

from brainldm.runtime.compiled_programs import cache_home, private_folder


def folder() -> Path:
    """The folder, tidied up; where nothing can be kept, one of this run alone."""
    try:
        return private_folder(cache_home() / "brainldm-tests" / "programs")
    except OSError:  # no such place, not writable, no home
        alone = Path(tempfile.mkdtemp(prefix="brainldm_compiled_"))
        atexit.register(shutil.rmtree, alone, ignore_errors=True)
        return alone

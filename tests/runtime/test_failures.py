"""What a person is told of errors that the machine raises."""

import errno
from concurrent.futures.process import BrokenProcessPool

import pytest

from brainldm.runtime.errors import Stopped, UserError
from brainldm.runtime.failures import told


@pytest.mark.parametrize(
    "error, code, said",
    [
        (UserError("wrong"), 2, "wrong"),
        (Stopped("stopped"), 75, "stopped"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "Make room"),
        (OSError(errno.EACCES, "Permission denied", "a/b"), 2, "a/b: Permission denied"),
        (OSError(errno.ELOOP, "Too many levels", "a"), 2, "leads to itself"),
        (UnicodeEncodeError("ascii", "aé", 1, 2, "ordinal not in range"), 2, "encoding ascii"),
        (MemoryError("Unable to allocate 9 TiB"), 1, "out of memory (Unable to allocate 9 TiB"),
        (BrokenProcessPool("terminated abruptly"), 1, "fewer --workers"),
        (RuntimeError("Unable to initialize backend 'bogus': no such"), 2, "Set JAX_PLATFORMS"),
    ],
)
def test_what_a_person_can_mend_is_said_with_its_exit_code(error, code, said):
    message, found = told(error)
    assert found == code and said in message
    assert "\n" not in message


@pytest.mark.parametrize("error", [KeyError("bug"), RuntimeError("bug"), OSError(errno.EBADF, "Bad file descriptor")])
def test_a_fault_of_the_program_keeps_its_trace(error):
    assert told(error) is None

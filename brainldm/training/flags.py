"""The command line of a training run: a config file with overrides, a work dir, and the process's place in a run.

The config file is Python and is executed: run only files that you trust.
"""

from __future__ import annotations

from collections.abc import Sequence

import ml_collections
from absl import flags
from ml_collections import config_flags

from brainldm.runtime.errors import UserError

_USAGE = (
    "Write: brainldm train --config FILE.py[:arg] --workdir DIR [--config.key=value ...] "
    "[--distributed [--coordinator HOST:PORT --num-processes N --process-id I]]"
)
_PLACE = ("coordinator", "num-processes", "process-id")


def parse(arguments: Sequence[str]) -> tuple[ml_collections.ConfigDict, str, dict | None]:
    """The config and the work dir of a command line (without the program's name), and the process's place in a run.

    The place holds the flags `coordinator`, `num_processes` and `process_id`; it is None without --distributed.
    Raises UserError for an unknown flag, a config that cannot be read, or an override that is not a key of it (the
    nearest key is named).
    """
    flag_values = flags.FlagValues()
    command = ["train", *arguments]
    config_flags.DEFINE_config_file(
        "config", None, "config file", lock_config=True, flag_values=flag_values, sys_argv=command
    )
    flags.DEFINE_string("workdir", None, "where the run keeps everything", flag_values=flag_values)
    flags.DEFINE_boolean("distributed", False, "one of several processes that train together", flag_values=flag_values)
    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0", flag_values=flag_values)
    flags.DEFINE_integer("num-processes", None, "how many processes there are", flag_values=flag_values)
    flags.DEFINE_integer("process-id", None, "which process this is", flag_values=flag_values)
    try:
        rest = flag_values(command)[1:]
        config = flag_values.config
        if config is not None:
            config.get("stage")  # what could not be loaded says so when it is first looked at
    except UserError:
        raise
    except Exception as error:  # absl, ml_collections and the config file itself raise many kinds
        raise UserError(f"train {' '.join(arguments)}: {_clean(error)}") from error
    if rest or not config or not flag_values.workdir:
        what = f"unexpected {' '.join(rest)}" if rest else "--config and --workdir are both needed"
        raise UserError(f"{what}. {_USAGE}")
    place = {name.replace("-", "_"): flag_values[name].value for name in _PLACE}
    if not flag_values.distributed:
        given = [f"--{name}" for name in _PLACE if flag_values[name].value is not None]
        if given:
            raise UserError(f"{', '.join(given)} is for a run of several processes: add --distributed.")
    return config, flag_values.workdir, place if flag_values.distributed else None


def _clean(error: Exception) -> str:
    text = " ".join(str(error).strip('"').split()) or type(error).__name__
    return text if text.endswith((".", "?")) else text + "."

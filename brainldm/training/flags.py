"""The command line of a training run: a config with overrides, a work dir, and which of several processes this one is.

A config is a Python file that is executed: run only files that you trust.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
from absl import flags
from ml_collections import config_flags

from brainldm.runtime.errors import UserError
from brainldm.runtime.files import read_file
from brainldm.training.config_files import config_file

_USAGE = (
    "Write: brainldm train --config FILE.py[:arg] --workdir DIR [--config.key=value ...] "
    "[--distributed [--coordinator HOST:PORT --num-processes N --process-id I]]"
)
_PROCESS = ("coordinator", "num-processes", "process-id")


def load_config(source: str, overrides: Mapping[str, Any] | Sequence[str] = ()) -> ml_collections.ConfigDict:
    """The locked config of `source`, a file FILE.py[:arg] or the name of a packaged config, as "demo_ldm:tiny".

    `overrides` change its values: {"data.path": "people"}, or flags as "--config.data.path=people". Raises UserError
    for a config that cannot be read, and for an override that is not a key of it (the nearest key is named) or has
    another type.
    """
    values = flags.FlagValues()
    by_key = isinstance(overrides, Mapping)
    command = ["", f"--config={source}", *(() if by_key else overrides)]
    rest = _parse(values, command)
    if rest:
        raise UserError(f"unexpected {' '.join(rest)}: only --config.key=value changes a config.")
    config = values.config
    if by_key:
        for key, value in overrides.items():
            try:
                config.update_from_flattened_dict({key: value})
            except (KeyError, TypeError, ValueError) as error:
                raise UserError(f"{source}, {key}={value!r}: {_clean(error)}") from error
    return config


def parse(arguments: Sequence[str]) -> tuple[ml_collections.ConfigDict, str]:
    """The config and the work dir that the command line of `train` names (without the program's name).

    Raises UserError as `load_config` does, for an unknown flag, and when one of the two is not given.
    """
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "where the run keeps everything", flag_values=values)
    _define_process_flags(values)
    rest = _parse(values, ["train", *arguments])
    if rest or not values.config or not values.workdir:
        what = f"unexpected {' '.join(rest)}" if rest else "--config and --workdir are both needed"
        raise UserError(f"{what}. {_USAGE}")
    return values.config, values.workdir


def process_flags(arguments: Sequence[str]) -> dict[str, Any] | None:
    """The flags `coordinator`, `num_processes` and `process_id` of a command line; None without --distributed.

    The config is not looked at, let alone executed. Raises UserError when one of them is given without --distributed.
    """
    values = flags.FlagValues()
    values.set_gnu_getopt(True)  # look behind what is not a flag of these
    _define_process_flags(values)
    try:
        values(["train", *arguments], known_only=True)
    except flags.Error as error:
        raise UserError(f"train {' '.join(arguments)}: {_clean(error)}") from error
    given = {name: values[name].value for name in _PROCESS}
    if values.distributed:
        return {name.replace("-", "_"): value for name, value in given.items()}
    extra = [f"--{name}" for name, value in given.items() if value is not None]
    if extra:
        raise UserError(f"{', '.join(extra)} is for a run of several processes: add --distributed.")
    return None


def _define_process_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_boolean("distributed", False, "one of several processes that train together", flag_values=values)
    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0", flag_values=values)
    flags.DEFINE_integer("num-processes", None, "how many processes there are", flag_values=values)
    flags.DEFINE_integer("process-id", None, "which process this is", flag_values=values)


def _parse(values: flags.FlagValues, command: Sequence[str]) -> list[str]:
    """Read `command` into `values`, to which --config is added, and return what is not a flag."""
    command = _with_config_paths(command)
    config_flags.DEFINE_config_file("config", None, "config", lock_config=True, flag_values=values, sys_argv=command)
    try:
        rest = values(command)[1:]
        if values.config is not None:
            values.config.get("stage")  # what could not be loaded says so when it is first looked at
    except UserError as error:  # of the config file itself
        raise UserError(f"{' '.join(command).strip()}: {error}") from error
    except SystemExit as error:
        raise UserError(f"{' '.join(command).strip()}: the config file calls sys.exit.") from error
    except Exception as error:  # absl, ml_collections and the config file itself raise many kinds
        raise UserError(f"{' '.join(command).strip()}: {_clean(error)}") from error
    return rest


def _with_config_paths(command: Sequence[str]) -> list[str]:
    """`command` with the name of a packaged config after --config replaced by the path of its file."""
    found = list(command)
    for index, text in enumerate(found):
        flag, equals, value = text.partition("=")
        if flag not in ("--config", "-config"):
            continue
        if equals:
            found[index] = f"{flag}={config_path(value)}"
        elif index + 1 < len(found):
            found[index + 1] = config_path(found[index + 1])
    return found


def config_path(source: str) -> str:
    """`source` as FILE.py[:arg]: a path stays as it is, and the name of a packaged config becomes the path of its file.

    Raises UserError naming the nearest packaged config when there is none of that name.
    """
    name, colon, arg = source.partition(":")
    if not name or name.endswith(".py") or "/" in name or Path(name).exists():
        if Path(name).exists():
            read_file(name)  # a pipe would be waited for
        return source
    return f"{config_file(name)}{colon}{arg}"


def _clean(error: Exception) -> str:
    text = " ".join(str(error).strip('"').split()) or type(error).__name__
    return text if text.endswith((".", "?")) else text + "."

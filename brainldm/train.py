"""Train either stage: `python -m brainldm.train --config FILE.py[:arg] --workdir DIR [--config.key=value ...]`.

The config file is Python and is executed: run only files that you trust.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from brainldm.errors import UserError


def parse(arguments: Sequence[str]):
    """The config and the work dir of a command line (without the program's name).

    Raises UserError for an unknown flag, a config that cannot be read, or an override that is not a key of it (the
    nearest key is named).
    """
    flag_values = flags.FlagValues()
    command = ["train", *arguments]
    config_flags.DEFINE_config_file(
        "config", None, "config file", lock_config=True, flag_values=flag_values, sys_argv=command
    )
    flags.DEFINE_string("workdir", None, "where the run keeps everything", flag_values=flag_values)
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
        raise UserError(f"{what}. Write: brainldm train --config FILE.py[:arg] --workdir DIR [--config.key=value ...]")
    return config, flag_values.workdir


def _clean(error: Exception) -> str:
    text = " ".join(str(error).strip('"').split()) or type(error).__name__
    return text if text.endswith((".", "?")) else text + "."


def run(arguments: Sequence[str]) -> None:
    """Parse and train."""
    config, workdir = parse(arguments)
    from brainldm.training.loop import train

    train(config, workdir)


if __name__ == "__main__":
    from brainldm.cli import main

    sys.exit(main(["train", *sys.argv[1:]]))

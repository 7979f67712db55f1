"""The real command, loop, checkpoints and processes with the stage of fake_stage.py: takes the flags of `train`."""

import sys

from brainldm.cli import main
from brainldm.runtime.supervisor import supervise, supervised

if __name__ == "__main__":
    if "--distributed" in sys.argv and not supervised():
        sys.exit(supervise([sys.executable, *sys.argv], grace_seconds=10))

    from fake_stage import make_stage

    from brainldm.training import loop

    loop.make_stage = make_stage
    sys.exit(main(["train", *sys.argv[1:]]))

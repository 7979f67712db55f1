"""Train a stage: `python -m brainldm.train --config FILE.py[:arg] --workdir DIR [--config.key=value ...]`.

With `--distributed` this is one of several processes that train together. Each of them gets the same command; which of
them it is the launcher says (SLURM, Open MPI, Kubernetes, Cloud TPU VMs), or `--coordinator HOST:PORT
--num-processes N --process-id I`.
"""

import sys

from brainldm.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))

"""The real command, loop, checkpoints and processes with a stage of few numbers: takes the flags of `train`.

The variable FAKE makes process 1 misbehave after some steps: "bad" meets a scan that it cannot
read, "bug" raises KeyError.
"""

import functools
import os
import sys
import time
from pathlib import Path

from brainldm.cli import main
from brainldm.runtime.supervisor import supervise, supervised

if __name__ == "__main__":
    if "--distributed" in sys.argv and not supervised():
        sys.exit(supervise([sys.executable, *sys.argv], grace_seconds=4))

    sys.path.append(str(Path(__file__).resolve().parents[1]))

    import jax
    import numpy as np
    from fakes import FakeStage

    from brainldm.data.pipeline import LatentSource
    from brainldm.runtime.errors import UserError
    from brainldm.training import loop

    class Source(LatentSource):
        """Eight latents, one of which may be a trap."""

        def __init__(self):
            super().__init__(np.arange(40, dtype=np.float32).reshape(8, 5), np.zeros((8, 1)))
            self.read = 0

        def __getitem__(self, index):
            self.read += 1
            time.sleep(0.005)
            if jax.process_index() == 1 and self.read > 40:
                match os.environ.get("FAKE"):
                    case "bad":
                        raise UserError("sub-7: cannot be read.")
                    case "bug":
                        raise KeyError("a bug")
            return super().__getitem__(index)

    class TrapStage(FakeStage):
        run_info = {"scans_training": 8, "scans_validation": 1}

        def source(self):
            return Source()

    loop.train = functools.partial(loop.train, stage=TrapStage)
    sys.exit(main(["train", *sys.argv[1:]]))

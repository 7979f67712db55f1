"""The command `train`: the stage that its config names."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence


def add(add_command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add this command; `add_command(name, run, help, example)` makes its parser."""
    from brainldm.training.config_files import packaged_configs

    add_command(
        "train",
        lambda options: train(options.rest),
        "train the autoencoder, the diffusion model, a baseline or the brain-age network, as its config says",
        "brainldm train --config demo_autoencoder --workdir runs/ae --config.data.path=./people\n"
        f"flags: --config FILE.py[:arg] or the name of a packaged config ({', '.join(packaged_configs())}),\n"
        "--workdir DIR, --config.key=value ...,\n"
        "for one of several processes that train together --distributed, with --coordinator HOST:PORT\n"
        "--num-processes N --process-id I where no launcher (SLURM, Kubernetes, Cloud TPU VM) says which it is",
    ).set_defaults(takes_config=True, resumes=True)


def train(arguments: Sequence[str]) -> None:
    """Parse and train. With --distributed the training runs in a process of its own, which this one looks after."""
    from brainldm.parallel.launch import launch_of
    from brainldm.runtime.files import require_writable
    from brainldm.runtime.supervisor import supervise, supervised
    from brainldm.training.flags import parse, process_flags

    flags = process_flags(arguments)
    launch = None if flags is None else launch_of(**flags)
    if launch is not None and not supervised():
        code = supervise([sys.executable, "-m", "brainldm", "train", *arguments])
        if code:
            sys.exit(code)
        return
    config, workdir = parse(arguments)
    require_writable(workdir)
    # Only now: the process that looks after another one needs neither the config nor JAX.
    import jax

    from brainldm.parallel import devices, distributed
    from brainldm.planning.advice import device_memory, training_advice
    from brainldm.runtime.compiled_programs import keep_programs
    from brainldm.runtime.console import log
    from brainldm.training import loop

    if launch is not None:
        distributed.start(launch, config.heartbeat_seconds)
    devices.refuse_silent_cpu()
    keep_programs()
    said = training_advice(config, device_memory(), jax.device_count())
    if said and distributed.is_primary():
        log(said)
    loop.train(config, workdir)

"""Types of arguments that several commands share. argparse turns their ValueError into a message and exit code 2."""

from __future__ import annotations

import argparse

from brainldm.runtime.console import log
from brainldm.runtime.shards import WHOLE, Shard, parse_shard, shard_from_environment

MAX_SEED = 2**63 - 1


def seed(text: str) -> int:
    """A seed: a whole number from 0 to 2**63 - 1."""
    try:
        value = int(text)
    except ValueError:
        value = -1
    if not 0 <= value <= MAX_SEED:
        raise argparse.ArgumentTypeError(f"{text!r}: a whole number from 0 to 2**63 - 1 is wanted")
    return value


def positive(text: str) -> int:
    """A whole number of at least 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: a whole number of at least 1 is wanted")
    return value


def add_shard(parser: argparse.ArgumentParser, what: str) -> None:
    """Add the flags that give a process its share of the `what`s."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--shard", metavar="i/n", help=f"do the i-th of n shares of the {what}s, from 1")
    group.add_argument(
        "--shards",
        type=positive,
        metavar="n",
        help="do one of n shares, which one the scheduler's variables say (SLURM, Kubernetes, PBS, SGE, LSF, TPU)",
    )


def shard_of(options: argparse.Namespace) -> Shard:
    """The share that the flags of `add_shard` give. Raises UserError when they give none that there is."""
    if options.shard is not None:
        return parse_shard(options.shard)
    if options.shards is None:
        return WHOLE
    shard, variable = shard_from_environment(options.shards)
    log(f"share {shard[0]} of {shard[1]}, as {variable} says")
    return shard


def interval(text: str) -> tuple[float, float]:
    """Two numbers LOW:HIGH."""
    try:
        low, high = map(float, text.split(":"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: two numbers LOW:HIGH are wanted, such as 0.2:0.8") from None
    return low, high

"""A resume that nobody notices: runs killed at random moments end as if nothing had happened."""

import json
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import save_loop

from brainldm.runtime.checkpoint_folder import finished_steps
from brainldm.training import restore

EVERY = {"autoencoder": 3, "diffusion": 9}  # of 24 and 72 steps


def kill_after(process, workdir: Path, step: int, pause: float) -> None:
    """Kill a run `pause` seconds after it has finished a step (0: after its start)."""
    end = time.monotonic() + 600
    while not (max(finished_steps(workdir / "checkpoints"), default=0) >= step and (workdir / "run.json").exists()):
        assert time.monotonic() < end and process.exitcode in (None, 0)
        if process.exitcode == 0:
            return
        time.sleep(0.005)
    time.sleep(pause)
    process.kill()
    process.join()


@pytest.mark.parametrize("stage", EVERY)
def test_killed_runs_end_as_an_undisturbed_one(demo_run, tmp_path, start, random, stage):
    straight, workdir, every = demo_run / stage, tmp_path / stage, EVERY[stage]
    config = restore.read_config(straight)
    last = config.num_steps
    moment = int(random.integers(0, last - every))

    def run():
        return start(save_loop.train, straight / "config.json", workdir, every)

    kill_after(run(), workdir, moment, float(random.uniform(0, 0.3)))
    if (workdir / "metrics.jsonl").exists():  # lines that are too late, and one that the kill has cut
        with (workdir / "metrics.jsonl").open("a") as file:
            file.write(f'{{"step": {last}, "split": "train", "loss": 0.1}}\n{{"step": {last}, "spl')
    process = run()
    process.join(600)
    assert process.exitcode == 0
    assert json.loads((workdir / "run.json").read_text())["resumed_from_step"] >= moment // every * every
    one, two = (restore.restore_state(config, folder) for folder in (straight, workdir))
    assert jax.tree.structure(one) == jax.tree.structure(two)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    assert (workdir / "metrics.jsonl").read_bytes() == (straight / "metrics.jsonl").read_bytes()

"""What the tests of checkpoints do in processes of their own, which they kill."""

import multiprocessing
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from fakes import FakeStage, State

from brainldm.parallel.sharding import abstract_like
from brainldm.runtime.errors import Stopped
from brainldm.runtime.lock import locked
from brainldm.runtime.signals import PreemptionHandler
from brainldm.training.checkpoints import Checkpoints
from brainldm.training.metrics import MetricWriter, read_metrics


def state_of(step: int, size: int = 1000) -> State:
    """A state in which every number depends on the step."""
    values = np.random.default_rng(step).normal(size=(size,)).astype(np.float32)
    return State(
        step=jnp.int32(step),
        params={"conv": {"kernel": jnp.asarray(values), "bias": jnp.asarray(values[:3])}},
        ema={"conv": {"kernel": jnp.asarray(-values), "bias": jnp.asarray(-values[:3])}},
    )


def check_equal(one: State, two: State) -> None:
    """Raise AssertionError when two states are not the same bit for bit."""
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), one, two)


def here() -> jax.sharding.Sharding:
    """The first device."""
    return jax.sharding.SingleDeviceSharding(jax.devices()[0])


def restored(workdir: Path, size: int = 1000) -> tuple[int, State]:
    """The newest step, found whole and equal to what was saved."""
    checkpoints = Checkpoints(workdir)
    state, progress = checkpoints.restore(abstract_like(state_of(0, size), here()))
    checkpoints.close()
    step = int(state.step)
    assert progress == {"validation_loss": float(step), "sums": {"loss": step / 7}}
    check_equal(state, state_of(step, size))
    return step, state


def save(checkpoints: Checkpoints, step: int, size: int = 1000) -> None:
    """Save the state of a step."""
    checkpoints.save(step, state_of(step, size), {"validation_loss": float(step), "sums": {"loss": step / 7}})


def save_for_ever(workdir: Path, size: int) -> None:
    """Save step after step, heedless of a wish to stop, until the process is killed."""
    with PreemptionHandler():
        checkpoints = Checkpoints(workdir)
        step = checkpoints.begin()[0] or 0
        if step:
            restored(workdir, size)
        while True:
            step += 1
            save(checkpoints, step, size)


def save_on_a_full_disk(workdir: Path, limit: int, size: int) -> None:
    """Save one step with room, then three without, which ends with exit code 75 when all is well."""
    checkpoints = Checkpoints(workdir)
    save(checkpoints, 1, size)
    assert checkpoints.wait()
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    save(checkpoints, 2, size)
    save(checkpoints, 3, size)  # with a warning about step 2
    assert not checkpoints.wait()
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    save(checkpoints, 4, size)
    assert checkpoints.wait() and checkpoints.latest == 4
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        for step in (5, 6, 7, 8):
            save(checkpoints, step, size)
    except Stopped as error:
        (workdir / "message").write_text(str(error))
        checkpoints.close()
        raise SystemExit(error.exit_code) from None


def save_on_four_devices(workdir: Path) -> None:
    """Save a state cut in four, and read it cut in two, in one piece and in four on the devices in reverse."""
    jax.config.update("jax_num_cpu_devices", 4)

    def sharded(count: int, order: int = 1) -> State:
        mesh = jax.sharding.Mesh(np.array(jax.devices()[:count][::order]), ("x",))
        cut = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
        whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        return jax.tree.map(lambda x: cut if x.shape == (1000,) else whole, state_of(3))

    checkpoints = Checkpoints(workdir)
    checkpoints.save(3, jax.device_put(state_of(3), sharded(4)), {})
    checkpoints.finish()
    for count, order in ((2, 1), (1, 1), (4, -1)):
        shardings = sharded(count, order)
        state, _ = checkpoints.restore(abstract_like(state_of(3), shardings))
        check_equal(state, state_of(3))
        assert state.params["conv"]["kernel"].sharding == shardings.params["conv"]["kernel"]
        assert state.params["conv"]["kernel"].addressable_shards[0].data.shape == (1000 // count,)


def call(log: Path | None, function: Callable, arguments: tuple) -> None:
    """Call a function with standard error in a file."""
    if log is not None:
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT, 0o666), 2)
    function(*arguments)


def wait_for(path: Path, process: multiprocessing.Process, seconds: float = 180) -> None:
    """Wait until a process that runs has made a file."""
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.is_alive() and time.monotonic() < end, f"{path.name} did not come (exit {process.exitcode})"
        time.sleep(0.005)


def train(config: Path, workdir: Path, every: int) -> None:
    """Train as the config.json `config` says, with a checkpoint every `every` steps."""
    from brainldm.runtime.files import read_json
    from brainldm.training import loop, restore

    settings = restore.from_json(read_json(config)).unlock()
    settings.every.checkpoint = every
    loop.train(settings.lock(), workdir)


def small_config(steps: int = 40):
    """A config for FakeStage."""
    from brainldm.training.config import autoencoder_config

    config = autoencoder_config().unlock()
    config.data.path, config.batch_size, config.num_steps = "nowhere", 4, steps
    config.every.log, config.every.validate, config.every.images, config.every.checkpoint = 5, 10, 0, 4
    return config.lock()


def train_small(workdir: Path, devices: int = 1, steps: int = 40) -> None:
    """Train FakeStage, a step every few milliseconds."""
    from brainldm.training import loop

    jax.config.update("jax_num_cpu_devices", devices)
    loop.train(small_config(steps), workdir, FakeStage, before_step=lambda step: time.sleep(0.01))


def write_metrics_on_a_full_disk(workdir: Path, limit: int) -> None:
    """Write lines into metrics.jsonl with room for some of them, and then for all."""
    writer = MetricWriter(workdir)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    for step in range(1, 101):
        writer.write_scalars(step, {"loss": 1 / step})
        writer.write_images(step, {"picture": np.zeros((8, 8, 3), np.uint8)})
    writer.optional(lambda: (workdir / "picture.png").write_bytes(bytes(2 * limit)))
    try:
        writer.require_written()
    except OSError:
        assert len(read_metrics(workdir, "train")["step"]) < 100
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        writer.write_scalars(101, {"loss": 0.0})
        writer.require_written()
        writer.close()


def hold_lock(folder: Path) -> None:
    """Hold the lock of a folder until the process is killed."""
    with locked(folder):
        (folder / "ready").touch()
        time.sleep(60)


def wait_in_one_call(folder: Path) -> None:
    """Want to stop, inside one long call that Python cannot interrupt: a thread waits for another one."""
    with PreemptionHandler() as stop:
        (folder / "ready").touch()
        while not stop.requested:
            time.sleep(0.01)
        (folder / "requested").touch()
        jax.jit(lambda x: jax.lax.fori_loop(0, 2**31 - 1, lambda i, y: jnp.sin(y), x))(jnp.ones(4)).block_until_ready()

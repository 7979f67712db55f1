"""What the tests of checkpoints do in processes of their own, which they kill: no network, states of a few MB."""

import resource
import time
from pathlib import Path

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from brainldm.errors import Stopped
from brainldm.interrupts import StopRequest
from brainldm.lock import locked
from brainldm.training.checkpoints import Checkpoints, abstract_like


@flax.struct.dataclass
class State:
    """As that of a stage, with a moving average of its own."""

    step: jax.Array
    params: dict
    ema: dict


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
    with StopRequest():
        checkpoints = Checkpoints(workdir)
        step = checkpoints.begin() or 0
        if step:
            restored(workdir, size)
        (workdir / "ready").touch()
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


def hold_lock(folder: Path) -> None:
    """Hold the lock of a folder until the process is killed."""
    with locked(folder):
        (folder / "ready").touch()
        time.sleep(60)


def wait_in_one_call(folder: Path) -> None:
    """Want to stop, inside one long call that Python cannot interrupt: a thread waits for another one."""
    with StopRequest() as stop:
        (folder / "ready").touch()
        while not stop.requested:
            time.sleep(0.01)
        (folder / "requested").touch()
        jax.jit(lambda x: jax.lax.fori_loop(0, 2**31 - 1, lambda i, y: jnp.sin(y), x))(jnp.ones(4)).block_until_ready()

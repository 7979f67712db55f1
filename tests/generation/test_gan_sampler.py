"""Drawing volumes with an adversarial baseline: random parameters, on a grid of a few voxels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from brainldm.diffusion.sampling import Sampling
from brainldm.generation.sampler import make_sampler, reconstruct
from brainldm.planning.advice import generation_advice
from brainldm.runtime.errors import UserError
from brainldm.volumes.grids import Grid
from brainldm.weights.gan_folder import GanSpec, load_generator, save_gan

SHAPE = (8, 12, 8)
NETWORK = {"channels": [2, 4], "norm_num_groups": 2, "norm_eps": 1e-6, "dtype": "float32", "remat": False}


def random_params(network, *inputs):
    shapes = jax.eval_shape(network.init, jax.random.key(0), *inputs)["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(0, 0.5, x.shape).astype(x.dtype), shapes)


@pytest.fixture(scope="module", params=["lsgan", "vae_gan"])
def model(request, tmp_path_factory):
    encoder = {**NETWORK, "outputs": 6} if request.param == "vae_gan" else None
    generator = {**NETWORK, "shape": list(SHAPE), "latent_size": 3}
    spec = GanSpec(
        request.param, generator, encoder, Grid(SHAPE, np.diag([20.0, 20.0, 20.0, 1.0])), {"dataset": "none"}
    )
    params = {"generator": random_params(spec.make_generator(), jnp.zeros((1, 3)))}
    if encoder:
        params["encoder"] = random_params(spec.make_encoder(), jnp.zeros((1, *SHAPE, 1)))
    folder = tmp_path_factory.mktemp("gan") / "model"
    save_gan(folder, spec, params, "Not trained.\n")
    return load_generator(folder)


def test_a_volume_depends_on_its_seed_and_index_alone(model):
    draw, none = make_sampler(model, Sampling(), batch_size=3), np.zeros((3, 0))
    together = draw(5, np.array([4, 9, 2]), none)
    assert together.shape == (3, *SHAPE) and together.min() >= 0 and together.max() <= 1
    np.testing.assert_array_equal(draw(5, np.array([9]), none[:1])[0], together[1])
    for other in (draw(6, np.array([9]), none[:1]), draw(5, np.array([8]), none[:1])):
        assert np.abs(other[0] - together[1]).max() > 1e-3


def test_only_an_encoder_reconstructs(model):
    volumes = np.random.default_rng(0).random((2, *SHAPE)).astype(np.float32)
    again = reconstruct(model, volumes)
    if model.spec.kind == "lsgan":
        assert again is None
    else:
        assert again.shape == volumes.shape and np.abs(again[0] - again[1]).max() > 1e-3


def test_a_description_survives_its_folder_and_nothing_is_advised_of_it(model):
    assert GanSpec.from_json(model.spec.to_json()).to_json() == model.spec.to_json()
    assert generation_advice(model.spec, 4, 1.0) is None


def test_a_damaged_folder_is_refused(model, tmp_path):
    save_gan(tmp_path / "copy", model.spec, {"generator": model.generator, "encoder": model.encoder}, "card")
    path = tmp_path / "copy/generator.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(UserError, match="generator.safetensors: its SHA-256 is not the one"):
        load_generator(tmp_path / "copy")
    path.unlink()
    with pytest.raises(UserError, match="generator.safetensors: missing"):
        load_generator(tmp_path / "copy")

"""MONAI state dicts become a model folder that samples as MONAI does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from brainldm.diffusion.objectives import denoiser
from brainldm.diffusion.samplers import ddim
from brainldm.diffusion.sampling import Sampling
from brainldm.diffusion.schedule import make_chain, make_schedule
from brainldm.generation.dataset import Settings, generate
from brainldm.runtime.errors import UserError
from brainldm.weights.convert import ConversionOptions, from_monai, parse_head_channels, to_monai
from brainldm.weights.model_folder import load_model
from brainldm.weights.monai import autoencoder_from_monai
from brainldm.weights.state_dict import read_state_dict
from brainldm.weights.torch_file import read_torch_state_dict

GOLDEN = ConversionOptions(num_head_channels=(0, 32, 48), autoencoder_norm_groups=8, unet_norm_groups=8)


def relative_error(value, expected):
    return np.linalg.norm(np.asarray(value) - expected) / np.linalg.norm(expected)


@pytest.fixture(scope="module")
def model(shared, tmp_path_factory):
    """The model of the golden state dicts."""
    folder, golden = tmp_path_factory.mktemp("converted") / "model", shared / "golden"
    from_monai(golden / "autoencoder.pt", golden / "unet.pt", folder, GOLDEN)
    return load_model(folder)


def test_old_and_new_names_of_keys_make_the_same_model(shared, tmp_path, model):
    golden = shared / "golden"
    from_monai(golden / "autoencoder_old_keys.pth", golden / "unet_old_keys.pth", tmp_path / "model", GOLDEN)
    old = load_model(tmp_path / "model")
    jax.tree.map(np.testing.assert_array_equal, (old.autoencoder, old.unet), (model.autoencoder, model.unet))


def test_ten_ddim_steps_equal_monais(shared, model):
    golden = shared / "golden"
    numbers = np.load(golden / "unet.npz")
    unet, schedule = model.spec.make_unet(), make_schedule(**model.spec.schedule)
    condition = jnp.asarray(numbers["condition"]).reshape(numbers["z"].shape[0], -1)
    latent = jnp.asarray(np.moveaxis(numbers["z"], 1, -1))

    @jax.jit
    def output(params, x, t):
        return unet.apply({"params": params}, x, t, condition)

    keys = [name for name in numbers.files if "ddim" in name]
    assert len(keys) == 2
    with jax.default_matmul_precision("highest"):
        for name in keys:
            prediction = "velocity" if "v" in name.replace("ddim", "") else "epsilon"
            chain = make_chain(schedule, 10, "monai")
            x = ddim(denoiser(lambda x, t: output(model.unet, x, t), chain, prediction), chain, latent, None)
            assert relative_error(np.moveaxis(np.asarray(x), -1, 1), numbers[name]) < 1e-4


@pytest.mark.parametrize("prefix", ["net.", "module._orig_mod.", "autoencoder."])
def test_what_trainers_put_before_the_names_is_removed(prefix, tmp_path):
    arrays = {"encoder.x": np.ones(2, np.float32), "quant_conv_mu.conv.weight": np.zeros(3, np.float32)}
    others = {"discriminator.x": np.ones(1, np.float32), "loss": np.ones(1, np.float32)}
    path = tmp_path / "all.safetensors"
    safetensors.numpy.save_file({**{prefix + key: array for key, array in arrays.items()}, **others}, path)
    found = read_state_dict(path, "quant_conv_mu.conv.weight")
    assert set(found) == set(arrays)
    both = {**arrays, **{f"ema.{key}": array for key, array in arrays.items()}}
    safetensors.numpy.save_file({f"net.{key}": array for key, array in both.items()} | both, path)
    assert set(read_state_dict(path, "quant_conv_mu.conv.weight")) >= set(arrays)
    safetensors.numpy.save_file({f"net.{key}": array for key, array in both.items()}, path)
    with pytest.raises(UserError, match="2 networks that could be meant, under net., net.ema."):
        read_state_dict(path, "quant_conv_mu.conv.weight")
    path.write_bytes(b"no safetensors")
    with pytest.raises(UserError, match="not a readable safetensors file"):
        read_state_dict(path, "quant_conv_mu.conv.weight")


def test_an_autoencoder_with_attention_is_named_as_such():
    state = {"encoder.blocks.9.attn.to_q.weight": np.zeros((4, 4))}
    with pytest.raises(UserError, match="has attention.*attention_levels"):
        autoencoder_from_monai(state)


def test_what_is_written_for_monai_is_read_again(model, shared, tmp_path):
    golden = shared / "golden"
    from_monai(golden / "autoencoder.pt", golden / "unet.pt", tmp_path / "model", GOLDEN)
    files = to_monai(tmp_path / "model", tmp_path / "monai")
    from_monai(*files, tmp_path / "again", GOLDEN)
    again = load_model(tmp_path / "again")
    jax.tree.map(np.testing.assert_array_equal, (again.autoencoder, again.unet), (model.autoencoder, model.unet))


def test_there_and_back_is_the_same(shared, tmp_path):
    golden = shared / "golden"
    from_monai(golden / "autoencoder.pt", golden / "unet.pt", tmp_path / "model", GOLDEN)
    files = to_monai(tmp_path / "model", tmp_path / "monai")
    for file, name in zip(files, ("autoencoder.pt", "unet.pt"), strict=True):
        back, original = safetensors.numpy.load_file(file), read_torch_state_dict(golden / name)
        assert back.keys() == original.keys()
        for key, array in original.items():
            np.testing.assert_array_equal(back[key], array)


def test_a_converted_model_generates(model, tmp_path):
    assert model.spec.latent_shape == (20, 28, 20, 3)
    row = {"sex": "F", "age": 60.0, "ventricles_ml": 30.0, "brain_ml": 1500.0}
    generate(model, tmp_path / "out", [row], Settings(Sampling(1), batch_size=1))
    assert next((tmp_path / "out/sub-0001/anat").glob("*_T1w.nii.gz")).stat().st_size > 100_000


def test_networks_that_do_not_fit_each_other_are_refused(shared, tmp_path):
    golden = shared / "golden"
    with pytest.raises(UserError, match="sides that divide by 4"):
        from_monai(
            golden / "autoencoder.pt",
            golden / "unet.pt",
            tmp_path / "a",
            ConversionOptions(
                spacing_mm=4, num_head_channels=(0, 32, 48), autoencoder_norm_groups=8, unet_norm_groups=8
            ),
        )
    with pytest.raises(UserError):
        from_monai(golden / "unet.pt", golden / "unet.pt", tmp_path / "b", GOLDEN)
    assert not (tmp_path / "a").exists() and not (tmp_path / "b").exists()


def test_head_channels_are_a_list_of_numbers():
    assert parse_head_channels("0,512,768") == (0, 512, 768)
    assert parse_head_channels(None) is None
    with pytest.raises(UserError, match="0,512,768"):
        parse_head_channels("many")

"""Parity with MONAI: outputs of its networks (1.6.1 on PyTorch, CPU, float32), and its state dicts both ways.

The small references in tests/golden were made with MONAI's public classes and random weights; those in
../shared are wider networks, in files that PyTorch wrote, under both spellings of the keys.
"""

import json

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from brainldm.models.autoencoder import AutoencoderKL
from brainldm.models.discriminator import PatchDiscriminator
from brainldm.models.unet import DiffusionUNet
from brainldm.runtime.errors import UserError
from brainldm.weights import monai
from brainldm.weights.torch_file import read_torch_state_dict

TOLERANCE = 1e-5  # relative L2
UNETS = {"unet": [0, 4], "unet_stride_conv": [0, 2]}


@pytest.fixture(scope="module")
def small(repository):
    def load(name):
        with np.load(repository / "tests" / "golden" / f"monai_{name}.npz") as file:
            arrays = dict(file)
        state = {k.removeprefix("state/"): v for k, v in arrays.items() if k.startswith("state/")}
        return state, arrays

    return load


def _last(array):
    """NCDHW to NDHWC."""
    return np.moveaxis(array, 1, -1)


def _close(found, expected):
    expected = np.asarray(_last(expected), np.float64)
    assert found.shape == expected.shape
    assert np.linalg.norm(found - expected) < TOLERANCE * np.linalg.norm(expected)


def _run(function, *arguments):
    with jax.default_matmul_precision("highest"):
        return jax.jit(function, compiler_options={"xla_backend_optimization_level": 1})(*arguments)


def _same(found, expected):
    assert found.keys() == expected.keys()
    for key, array in expected.items():
        assert (found[key].shape, found[key].dtype) == (array.shape, array.dtype), key
        assert found[key].tobytes() == array.tobytes(), key


def _check_autoencoder(state, arrays, groups):
    params, kwargs = monai.autoencoder_from_monai(state, norm_num_groups=groups)
    network = AutoencoderKL(**kwargs)
    outputs = _run(lambda p, x: network.apply({"params": p}, x), params, _last(arrays["x"]))
    for found, name in zip(outputs, ("reconstruction", "mu", "sigma"), strict=True):
        _close(found, arrays[name])
    _same(monai.autoencoder_to_monai(params), state)


def _check_unet(state, arrays, heads, groups):
    params, kwargs = monai.unet_from_monai(state, heads, 4, norm_num_groups=groups)
    network = DiffusionUNet(**kwargs)
    inputs = _last(arrays["z"]), arrays["t"], arrays["condition"]
    _close(_run(lambda p, *a: network.apply({"params": p}, *a), params, *inputs), arrays["output"])
    _same(monai.unet_to_monai(params), state)


def _check_discriminator(state, arrays):
    variables, kwargs = monai.discriminator_from_monai(state)
    network = PatchDiscriminator(**kwargs)
    outputs = _run(lambda v, x: network.apply(v, x, False), variables, _last(arrays["x"]))
    _close(outputs[-1], arrays["logits"])
    _same(monai.discriminator_to_monai(variables), state)


def test_small_autoencoder(small):
    _check_autoencoder(*small("autoencoder"), groups=2)


@pytest.mark.parametrize("name", UNETS)
def test_small_unet(small, name):
    _check_unet(*small(name), heads=UNETS[name], groups=2)


def test_small_discriminator(small):
    _check_discriminator(*small("discriminator"))


def test_shared_autoencoder(shared):
    state = read_torch_state_dict(shared / "golden" / "autoencoder.pt")
    _check_autoencoder(state, np.load(shared / "golden" / "autoencoder.npz"), groups=8)
    old = read_torch_state_dict(shared / "golden" / "autoencoder_old_keys.pth")
    assert old.keys() != state.keys()
    _same(monai.autoencoder_to_monai(monai.autoencoder_from_monai(old, norm_num_groups=8)[0]), state)


@pytest.mark.parametrize("name", UNETS)
def test_shared_unet(shared, name):
    spec = json.loads((shared / "golden" / "spec.json").read_text())[name]
    state = read_torch_state_dict(shared / "golden" / f"{name}.pt")
    arrays = np.load(shared / "golden" / f"{name}.npz")
    _check_unet(state, arrays, spec["num_head_channels"], spec["norm_num_groups"])
    old = read_torch_state_dict(shared / "golden" / f"{name}_old_keys.pth")
    assert old.keys() != state.keys()
    params, _ = monai.unet_from_monai(old, norm_num_groups=spec["norm_num_groups"])
    _same(monai.unet_to_monai(params), state)


def test_shared_discriminator(shared):
    state = read_torch_state_dict(shared / "golden" / "discriminator.pt")
    _check_discriminator(state, np.load(shared / "golden" / "discriminator.npz"))


def test_old_names(small):
    """The renamed keys, written the old way, lead to the same parameters."""
    for name, read, renames in (
        ("autoencoder", monai.autoencoder_from_monai, {".postconv.": ".conv."}),
        ("unet_stride_conv", monai.unet_from_monai, {".postconv.": ".conv.", ".out_proj.": ".to_out.0."}),
    ):
        state, _ = small(name)
        old = {}
        for key, array in state.items():
            for new, before in renames.items():
                key = key.replace(new, before)
            old[key] = array
        assert len(old.keys() - state.keys()) >= 2
        expected, found = (read(table, norm_num_groups=2) for table in (state, old))
        assert expected[1] == found[1]
        _same(flatten_dict(found[0]), flatten_dict(expected[0]))


def test_the_architecture_is_inferred(small):
    _, kwargs = monai.unet_from_monai(small("unet")[0], norm_num_groups=2)
    assert kwargs["channels"] == (4, 8) and kwargs["num_res_blocks"] == 1
    assert kwargs["attention_levels"] == (False, True) and kwargs["num_head_channels"] == (0, 8)
    assert kwargs["resblock_updown"] and kwargs["concat"] and kwargs["condition_dim"] == 4
    assert not monai.unet_from_monai(small("unet_stride_conv")[0], norm_num_groups=2)[1]["resblock_updown"]

    without = dict(small("unet")[0])
    without["conv_in.conv.weight"] = without["conv_in.conv.weight"][:, :2]
    params, kwargs = monai.unet_from_monai(without, norm_num_groups=2)
    assert not kwargs["concat"] and params["conv_in"]["kernel"].shape == (3, 3, 3, 2, 4)


def test_half_precision_weights_become_float32(small):
    state = {key: array.astype(np.float16) for key, array in small("autoencoder")[0].items()}
    params, _ = monai.autoencoder_from_monai(state, norm_num_groups=2)
    assert {array.dtype for array in jax.tree.leaves(params)} == {np.dtype(np.float32)}


def test_what_does_not_fit_is_listed(small):
    state, _ = small("unet")
    block = "middle_block.resnet_1.conv1.conv"
    broken = {key: array for key, array in state.items() if key != f"{block}.bias"}
    broken[f"{block}.weight"] = state[f"{block}.weight"][..., :1]
    broken["class_embedding.weight"] = np.zeros((3, 16), np.float32)
    with pytest.raises(UserError) as error:
        monai.unet_from_monai(broken, norm_num_groups=2)
    message = str(error.value)
    assert f"missing: {block}.bias" in message
    assert "unexpected: class_embedding.weight" in message
    assert f"another shape: {block}.weight (8, 8, 3, 3, 1) where (8, 8, 3, 3, 3)" in message


def test_other_mistakes_are_named(small):
    autoencoder, unet = small("autoencoder")[0], small("unet")[0]
    for read, state in (
        (monai.autoencoder_from_monai, unet),
        (monai.unet_from_monai, autoencoder),
        (monai.discriminator_from_monai, unet),
    ):
        with pytest.raises(UserError, match="it has no"):
            read(state)
    with pytest.raises(UserError, match="norm_num_groups=32"):
        monai.autoencoder_from_monai(autoencoder)
    with pytest.raises(UserError, match="condition_dim=3"):
        monai.unet_from_monai(unet, condition_dim=3, norm_num_groups=2)
    with pytest.raises(UserError, match="num_head_channels"):
        monai.unet_from_monai(unet, [0, 8, 8], norm_num_groups=2)


def test_what_monai_has_no_place_for_is_refused(small):
    params, _ = monai.unet_from_monai(small("unet")[0], norm_num_groups=2)
    learned = {**params, "null_condition": np.zeros(4, np.float32)}
    with pytest.raises(UserError, match="null condition"):
        monai.unet_to_monai(learned)
    _same(monai.unet_to_monai(learned, leave_out_null_condition=True), small("unet")[0])
    projection = {"kernel": np.zeros((16, 16), np.float32)}
    middle = {**params["middle_block"]["resnet_1"], "condition_proj": projection}
    adaptive = {**params, "middle_block": {**params["middle_block"], "resnet_1": middle}}
    with pytest.raises(UserError, match="adaptive"):
        monai.unet_to_monai(adaptive)

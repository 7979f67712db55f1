"""What a model.json says is looked at before anything is made of it: it loads, or a sentence says why not."""

import copy
import json
import math
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brainldm.datasets.covariates import Covariates
from brainldm.diffusion.sampling import Sampling
from brainldm.runtime.errors import UserError
from brainldm.volumes.grids import training_grid
from brainldm.weights.brain_age_folder import BrainAgeSpec
from brainldm.weights.gan_folder import GanSpec
from brainldm.weights.model_folder import ModelSpec

NETWORK = {"channels": [4, 8], "norm_num_groups": 4, "norm_eps": 1e-6, "dtype": "float32", "remat": False}
GRID = training_grid(4)
PROVENANCE = {"brainldm": "0.1.0", "dataset": "none", "scans": 7, "init_from": {"unet": "0" * 64}}
UNET = {
    **NETWORK,
    "attention_levels": [False, True],
    "num_head_channels": [0, 8],
    "num_res_blocks": 1,
    "condition_dim": 4,
    "in_channels": 2,
    "out_channels": 2,
    "null_condition": "learned",
    "concat": True,
}
SPECS = {
    "latent_diffusion": ModelSpec(
        autoencoder={**NETWORK, "architecture": "kl", "num_res_blocks": 1, "latent_channels": 2},
        unet=UNET,
        schedule={"kind": "linear", "beta_start": 0.0015, "beta_end": 0.0205, "num_train_steps": 10},
        prediction="velocity",
        latent_scale=1.5,
        sampling=Sampling(2),
        grid=GRID,
        covariates=Covariates(),
        provenance=PROVENANCE,
    ),
    "vae_gan": GanSpec(
        "vae_gan",
        {**NETWORK, "shape": GRID.shape, "latent_size": 3},
        {**NETWORK, "outputs": 6},
        GRID,
        PROVENANCE,
    ),
    "brain_age": BrainAgeSpec(
        {"channels": [4, 8], "dtype": "float32", "remat": False},
        (44.0, 82.0),
        {"mae": 3.0, "n": 5, "r": 0.5},
        GRID,
        PROVENANCE,
    ),
}
DESCRIBED = {kind: json.loads(json.dumps(spec.to_json())) for kind, spec in SPECS.items()}


def load(kind, content):
    """All that is made of a description before weights are read, but for the shapes of big networks."""
    spec = type(SPECS[kind]).from_json(content)
    if kind == "latent_diffusion":
        spec.make_autoencoder(), spec.make_unet(), math.prod(spec.latent_shape)
    elif kind == "vae_gan":
        spec.make_generator(), spec.make_encoder()
    else:
        spec.make_network()
    json.dumps(spec.to_json(), allow_nan=False)
    return spec


def places(content, path=()):
    """The path of every value, tables and lists too."""
    yield path
    if isinstance(content, dict | list):
        for key, value in content.items() if isinstance(content, dict) else enumerate(content):
            yield from places(value, (*path, key))


def changed(content, path, value):
    if not path:
        return value
    content = copy.deepcopy(content)
    holder = content
    for key in path[:-1]:
        holder = holder[key]
    if value is DELETED:
        del holder[path[-1]]
    else:
        holder[path[-1]] = value
    return content


DELETED = object()
DEEP = [[]]
for _ in range(5000):
    DEEP = [DEEP]

ODD = st.sampled_from(
    [DELETED, None, True, "", "x", "\t\n", "participant_id", [], {}, [[]], {"a": 1}, DEEP, 0, -1, 1, 7, 0.5, -0.0]
    + [2**31, 10**10, 10**400, -(10**30), 1e308, 5e-324, math.nan, math.inf, -math.inf, "nan", "1", "int8", "object"]
    + [[1] * 2000, [0], [-4, 8], [10**6] * 3, [4000, 5600, 4000], [8, 8], [1, 0], [math.nan, 44.0], "k" * 5000]
)


@pytest.mark.parametrize("kind", DESCRIBED)
def test_a_good_description_survives(kind):
    spec = load(kind, DESCRIBED[kind])
    assert json.loads(json.dumps(spec.to_json())) == DESCRIBED[kind]


@pytest.mark.parametrize("kind", DESCRIBED)
@settings(derandomize=True, max_examples=400, deadline=None, database=None)
@given(data=st.data())
def test_a_description_with_one_odd_value_loads_or_is_refused_in_little_memory(kind, data):
    content = DESCRIBED[kind]
    path = data.draw(st.sampled_from([path for path in places(content) if path]))
    content = changed(content, path, data.draw(ODD))
    try:
        load(kind, content)
    except UserError as error:
        assert len(str(error)) < 1000 and "\n" not in str(error)


@pytest.mark.parametrize(
    "path, value, said",
    [
        ((), [], "a table of names and values is wanted"),
        (("unet",), "kl", "unet is 'kl'"),
        (("autoencoder", "channels"), [4] * 2000, "channels is .*1 to 10"),
        (("autoencoder", "channels"), [4, 0], "channels is .4, 0.; a tuple"),
        (("autoencoder", "norm_num_groups"), 3, "4 channels are not a multiple of norm_num_groups 3"),
        (("autoencoder", "num_res_blocks"), 100_000, "num_res_blocks is 100000; a whole number from 1 to"),
        (("autoencoder", "dtype"), "object", "dtype is 'object'; float32 or bfloat16"),
        (("unet", "surprise"), 1, "unet has 'surprise', which this version does not know"),
        (("unet", "attention_levels"), [True], "one value for each of 2 levels"),
        (("unet", "in_channels"), 3, "not the 2 latent_channels"),
        (("schedule", "num_train_steps"), 10**10, "num_train_steps is 10000000000; a whole number from 1 to"),
        (("schedule", "beta"), 0.1, "schedule has 'beta'"),
        (("sampling", "guidance"), math.nan, "guidance of the sampling is nan"),
        (("image", "shape"), [4000, 5600, 4000], "at most 67108864"),
        (("image", "shape"), [40, -56, 40], "shape is .*whole number from 1"),
        (("image", "affine"), [[1, 0, 0]] * 3, "affine is"),
        (("image", "affine", 0, 0), math.nan, "affine is"),
        (("image", "affine", 0, 0), 0.0, "no grid of voxels"),
        (("covariates", 1, "name"), "participant_id", "whose scan it is"),
        (("covariates", 1, "name"), "a\tb", "name is 'a.tb'"),
        (("covariates", 1, "high"), 44.0, "has no width"),
        (("covariates", 1, "low"), "low", "low is 'low'; a finite number"),
        (("provenance",), "mine", "provenance is 'mine'"),
        (("provenance", "scans"), math.inf, "provenance: 'scans' is inf"),
        (("latent_scale",), 0, "latent_scale is 0; a number above 0"),
    ],
)
def test_what_a_latent_diffusion_model_cannot_be_is_named(path, value, said):
    with pytest.raises(UserError, match=said):
        load("latent_diffusion", changed(DESCRIBED["latent_diffusion"], path, value))


@pytest.mark.parametrize(
    "kind, path, value, said",
    [
        ("vae_gan", ("generator", "shape"), [8, 8, 8], "is not the image's"),
        ("vae_gan", ("encoder",), None, "encoder: a VAE-GAN has one"),
        ("vae_gan", ("encoder", "outputs"), 5, "twice the generator's latent_size"),
        ("vae_gan", ("generator", "latent_size"), 10**9, "latent_size is"),
        ("brain_age", ("years",), [82.0, 44.0], "the lower one first"),
        ("brain_age", ("network", "channels"), [4] * 9, "leave nothing of"),
        ("brain_age", ("held_out", "mae"), math.nan, "mae is nan"),
    ],
)
def test_what_a_baseline_or_an_age_network_cannot_be_is_named(kind, path, value, said):
    with pytest.raises(UserError, match=said):
        load(kind, changed(DESCRIBED[kind], path, value))


def test_a_description_of_the_largest_size_asks_for_little_memory():
    content = changed(DESCRIBED["latent_diffusion"], ("schedule", "num_train_steps"), 1_000_000)
    content = changed(content, ("image", "shape"), [256, 512, 512])
    tracemalloc.start()
    load("latent_diffusion", content)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()

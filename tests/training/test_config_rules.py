"""Impossible values of a config are refused before anything is read, with key, value and what is wanted."""

import json

import pytest

from brainldm.runtime.errors import UserError
from brainldm.training.config import CONFIGS, autoencoder_config, diffusion_config, validate
from brainldm.training.config_files import packaged_configs
from brainldm.training.config_rules import RULES
from brainldm.training.flags import load_config
from brainldm.training.restore import from_json

NAN, INF = float("nan"), float("inf")

BOTH = {
    "seed": [-1, 10**20, 2**32, 1.5],
    "batch_size": [0, -1],
    "num_steps": [0],
    "every.log": [-1],
    "every.checkpoint": [-5],
    "watchdog_seconds": [-1.0, NAN],
    "heartbeat_seconds": [-1.0],
    "mesh.fsdp": [0, -2],
    "data.path": [""],
    "data.spacing_mm": [3, 0],
    "data.scaling": ["maxmin"],
    "data.threads": [-1, 0],
    "data.cache_gib": [NAN, -1.0],
    "data.validation_fraction": [NAN, 1.0, -0.1],
    "data.max_excluded": [2.0],
    "data.augment.flip_probability": [1.5],
    "data.augment.gamma": [(1.0,), (0.0, 1.0), (2.0, 1.0)],
    "checkpoints.keep_last": [0],
    "model.channels": [(), (0, 0), (-4,), (32, 33)],
    "model.num_res_blocks": [0, -1],
    "model.norm_num_groups": [0, -4],
    "model.norm_eps": [0.0, NAN],
    "model.dtype": ["float16"],
    "model.remat": ["all", 1, (-1,), (0, 9)],
    "optimizer.learning_rate": [NAN, -1.0, INF],
    "optimizer.warmup_steps": [-5],
    "optimizer.gradient_clip": [0.0, NAN],
    "covariates.ranges.age": [(NAN, 44.0), (50.0, 50.0), (44.0,), (1.0, 2.0, 3.0)],
}
AUTOENCODER = {
    "model.architecture": ["kl2", True],
    "model.num_res_blocks": [0, -1, (), (1, 0)],
    "model.latent_channels": [0],
    "discriminator.num_layers": [20, 0],
    "discriminator.channels": [0],
    "loss.kl_weight": [NAN, -1.0],
    "loss.perceptual_ratio": [0.0, 2.0],
}
DIFFUSION = {
    "loss.prediction": ["banana", "epsilonn"],
    "loss.times": ["normal"],
    "loss.condition_dropout": [2.0, NAN],
    "latent_scale": [NAN, -1.0],
    "latents.variants": [0],
    "optimizer.ema_decay": [2.0, NAN, 1.0],
    "model.num_head_channels": [(0,), (0, 0, 768), (0, 500, 768)],
    "model.attention_levels": [(True,), ()],
    "model.null_condition": ["learnt", "nan"],
    "schedule.kind": ["quadratic"],
    "schedule.num_train_steps": [0, 10**10],
    "schedule.beta_end": [1.0, 0.0001, NAN],
    "sampling.num_steps": [0, 5000],
    "sampling.eta": [-1.0, NAN],
    "sampling.guidance": [INF],
}


def impossible():
    for make, table in ((autoencoder_config, BOTH | AUTOENCODER), (diffusion_config, BOTH | DIFFUSION)):
        for key, values in table.items():
            for value in values:
                yield pytest.param(make, key, value, id=f"{make.__name__}-{key}={value}")


@pytest.mark.parametrize(("make", "key", "value"), list(impossible()))
def test_an_impossible_value_is_named_with_its_key(make, key, value):
    config = make().unlock()
    config.data.path = "people"
    *parents, name = key.split(".")
    holder = config
    for parent in parents:
        holder = holder[parent]
    with holder.ignore_type():
        holder[name] = value
    with pytest.raises(UserError) as refused:
        validate(config)
    said = str(refused.value)
    assert said.startswith(f"config.{parents[0] if parents else name}") and name in said
    assert "wanted" in said or "is empty" in said or "larger" in said or "multiple" in said


@pytest.mark.parametrize("written", ["True", "False", "(0,)", "(0, 1)"])
def test_rematerialisation_is_a_switch_or_levels_and_survives_a_work_dir(written):
    config = load_config("paper_autoencoder", ["--config.data.path=people", f"--config.model.remat={written}"])
    validate(config)
    assert repr(config.model.remat) == written
    assert from_json(json.loads(config.to_json())).model.remat == config.model.remat


def test_the_blocks_of_each_level_are_for_space_to_depth_and_one_for_each():
    changes = {"data.path": "people", "model.channels": (32, 64), "model.num_res_blocks": (1, 2)}
    with pytest.raises(UserError, match="num_res_blocks.*for the architecture space_to_depth"):
        validate(load_config("paper_autoencoder", changes))
    changes["model.architecture"] = "space_to_depth"
    config = load_config("paper_autoencoder", changes)
    validate(config)
    assert from_json(json.loads(config.to_json())).model.num_res_blocks == (1, 2)
    with pytest.raises(UserError, match="each of the 2 channels|each of 2 levels"):
        validate(load_config("paper_autoencoder", changes | {"model.num_res_blocks": (1, 2, 3)}))


def test_the_nearest_word_is_named():
    config = diffusion_config().unlock()
    config.data.path, config.loss.prediction = "people", "epsilonn"
    with pytest.raises(UserError, match="config.loss.prediction is 'epsilonn'; .*Did you mean 'epsilon'"):
        validate(config)


@pytest.mark.parametrize("name", packaged_configs())
@pytest.mark.parametrize("arg", ["", ":tiny"])
def test_packaged_configs_are_possible(name, arg):
    validate(load_config(name + arg, {"data.path": "people"}))


def test_every_key_has_a_rule_but_those_that_are_understood_elsewhere():
    for make in CONFIGS.values():
        config = make()
        keys = set(_keys(config.to_dict()))
        without = {key for key in keys - set(RULES[config.stage]) if not key.startswith("covariates.ranges.")}
        assert without <= {"loss.perceptual", "mesh.rules", "mesh.min_size", "sampling.sampler", "sampling.spacing"}
        assert set(RULES[config.stage]) <= keys


def _keys(tree, prefix=""):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _keys(value, f"{prefix}{key}.")
        else:
            yield prefix + key

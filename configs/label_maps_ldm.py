"""Denoising network for people made from label maps: flow matching on latents of 10x14x10x16, in ten steps.

    brainldm train --config label_maps_ldm --workdir runs/ldm --config.data.path=PEOPLE --config.autoencoder=runs/ae

Expected figure: ventricles asked for against measured r = 0.86, slope 1.27, on 32 people made with another seed; the
images are soft and blotched (docs/models.md).

`:tiny` shrinks it to a few steps of a very small network, for tests.
"""

from brainldm.training.config import diffusion_config
from brainldm.training.config_arg import parse_arg


def get_config(arg: str = ""):
    arg = parse_arg(arg, tiny=False)
    config = diffusion_config()
    # What the people made from label maps fill: a normalised condition that hardly varies is hardly learnt.
    config.covariates.ranges.ventricles_ml = (5.0, 95.0)
    config.covariates.ranges.brain_ml = (1280.0, 1720.0)
    config.data.spacing_mm = 2
    config.data.validation_fraction = 0.06
    config.data.augment.flip_probability = 0.5
    config.latents.variants = 2
    config.model.channels = (64, 96)
    config.model.num_res_blocks = 1
    config.model.attention_levels = (False, True)
    config.model.num_head_channels = (0, 32)
    config.model.norm_num_groups = 8
    config.model.adaptive_norm = True
    config.model.null_condition = "learned"
    config.model.dtype = "float32"
    config.schedule.kind = "rectified_flow"
    config.loss.prediction = "flow"
    config.loss.times = "logit_normal"
    config.loss.condition_dropout = 0.1
    config.optimizer.learning_rate = 1e-3
    config.optimizer.muon_learning_rate = 0.01
    config.optimizer.warmup_steps = 50
    config.optimizer.decay = True
    config.optimizer.ema_decay = 0.998
    config.batch_size = 8
    config.num_steps = 1200
    config.every.log = 20
    config.every.validate = config.every.checkpoint = 200
    config.every.images = 400
    config.sampling.num_steps = 10
    config.sampling.sampler = "dpmpp_2m"
    config.sampling.spacing = "trailing"
    config.sampling.guidance = 2.0
    if arg.tiny:
        config.model.channels = (8, 16)
        config.model.num_head_channels = (0, 16)
        config.model.norm_num_groups = 4
        config.latents.variants = 1
        config.batch_size = 4
        config.num_steps = 4
        config.optimizer.warmup_steps = 1
        config.every.log = config.every.validate = config.every.images = config.every.checkpoint = 2
        config.sampling.num_steps = 2
    return config

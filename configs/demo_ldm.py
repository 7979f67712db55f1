"""Denoising network of the demo: latents of 10x14x10x8, conditions by concatenation, cross-attention and adaptive norm.

    brainldm train --config demo_ldm --workdir runs/ldm \\
        --config.data.path=DATASET --config.autoencoder=runs/ae

Expected figure: ventricles asked for against measured r = 0.91 and 0.82, brain volume 0.74 and 0.70, on two machines
with the same seed (32 brains of `brainldm demo`): rounding alone moves a training this short by as much.

`:tiny` shrinks it to a few steps of a very small network, for tests.
"""

from brainldm.training.config import diffusion_config
from brainldm.training.config_arg import parse_arg


def get_config(arg: str = ""):
    arg = parse_arg(arg, tiny=False)
    config = diffusion_config()
    # The embedded population fills little of the released model's ranges, and a normalised condition
    # that hardly varies is hardly learnt.
    config.covariates.ranges.ventricles_ml = (5.0, 65.0)
    config.covariates.ranges.brain_ml = (1300.0, 1700.0)
    config.data.spacing_mm = 4
    config.data.validation_fraction = 0.06
    config.model.channels = (32, 64)
    config.model.num_res_blocks = 1
    config.model.attention_levels = (False, True)
    config.model.num_head_channels = (0, 32)
    config.model.norm_num_groups = 8
    config.model.adaptive_norm = True
    config.model.dtype = "float32"
    config.loss.prediction = "velocity"
    config.loss.min_snr_gamma = 5.0
    config.model.null_condition = "learned"
    config.loss.condition_dropout = 0.1
    config.optimizer.learning_rate = 1e-3
    config.optimizer.muon_learning_rate = 0.01
    config.optimizer.warmup_steps = 50
    config.optimizer.decay = True
    config.optimizer.ema_decay = 0.995
    config.batch_size = 8
    config.num_steps = 450
    config.every.log = 20
    config.every.validate = 150
    config.every.images = 225
    config.every.checkpoint = 225
    config.sampling.num_steps = 20
    # After so few steps the conditions move the plain model by a fifth of what was asked.
    config.sampling.guidance = 4.0
    if arg.tiny:
        config.model.channels = (8, 16)
        config.model.num_head_channels = (0, 16)
        config.model.norm_num_groups = 4
        config.batch_size = 4
        config.num_steps = 72
        config.optimizer.warmup_steps = 2
        config.every.log = config.every.validate = config.every.images = config.every.checkpoint = 24
        config.sampling.num_steps = 2
    return config

"""Diffusion model for a small set of real scans at 4 mm, on the latents of oasis_autoencoder.

    brainldm train --config oasis_ldm --workdir runs/oasis_ldm --config.data.path=OASIS \\
        --config.autoencoder=runs/oasis_ae

Expected figure: not measured.

`:tiny` shrinks it to a few steps of a very small network, for tests.
"""

from brainldm.training.config import diffusion_config
from brainldm.training.config_arg import parse_arg


def get_config(arg: str = ""):
    arg = parse_arg(arg, tiny=False)
    config = diffusion_config()
    config.covariates.ranges.age = (18.0, 90.0)
    config.covariates.ranges.ventricles_ml = (5.0, 75.0)
    config.covariates.ranges.brain_ml = (900.0, 1700.0)
    config.data.spacing_mm = 4
    config.data.validation_fraction = 0.1
    config.model.channels = (32, 64)
    config.model.num_res_blocks = 1
    config.model.attention_levels = (False, True)
    config.model.num_head_channels = (0, 32)
    config.model.norm_num_groups = 8
    config.model.adaptive_norm = True
    config.model.dtype = "float32"
    config.loss.prediction = "velocity"
    config.loss.min_snr_gamma = 5.0
    config.optimizer.learning_rate = 1e-3
    config.optimizer.muon_learning_rate = 0.01
    config.optimizer.warmup_steps = 50
    config.optimizer.decay = True
    config.optimizer.ema_decay = 0.99
    config.batch_size = 8
    config.num_steps = 300
    config.every.log = 20
    config.every.validate = config.every.images = config.every.checkpoint = 100
    config.sampling.num_steps = 25
    if arg.tiny:
        config.model.channels = (8, 16)
        config.model.num_head_channels = (0, 16)
        config.model.norm_num_groups = 4
        config.batch_size = 4
        config.num_steps = 24
        config.optimizer.warmup_steps = 2
        config.every.log = config.every.validate = config.every.images = config.every.checkpoint = 12
        config.sampling.num_steps = 2
    return config

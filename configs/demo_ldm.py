"""Denoising network of the demo: latents of 10x14x10x3, conditions by concatenation, cross-attention and adaptive norm.

    brainldm train --config configs/demo_ldm.py --workdir runs/ldm --config.data.path=DATASET --config.autoencoder=runs/ae

`:tiny` shrinks it to a few steps of a very small network, for tests.
"""

from brainldm.training.config import diffusion_config


def get_config(arg: str = ""):
    config = diffusion_config()
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
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 50
    config.optimizer.decay = True
    config.optimizer.ema_decay = 0.995
    config.batch_size = 16
    config.num_steps = 600
    config.every.log = 20
    config.every.validate = 200
    config.every.images = 300
    config.every.checkpoint = 300
    config.sampling.num_steps = 25
    if arg == "tiny":
        config.model.channels = (8, 16)
        config.model.num_head_channels = (0, 16)
        config.model.norm_num_groups = 4
        config.batch_size = 4
        config.num_steps = 24
        config.every.log = config.every.validate = config.every.images = config.every.checkpoint = 12
        config.sampling.num_steps = 2
    return config

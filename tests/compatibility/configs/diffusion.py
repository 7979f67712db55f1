"""The denoising network of the fixtures: all three ways in for the conditions, draws from two variants of a scan."""

from brainldm.training.config import diffusion_config


def get_config():
    config = diffusion_config()
    config.covariates.ranges.ventricles_ml = (5.0, 65.0)
    config.covariates.ranges.brain_ml = (1300.0, 1700.0)
    config.data.spacing_mm = 4
    config.data.validation_fraction = 0.3
    config.data.augment.affine_probability = 1.0
    config.latents.variants = 2
    config.latents.sample = True
    config.model.channels = (2, 4)
    config.model.num_res_blocks = 1
    config.model.attention_levels = (False, True)
    config.model.num_head_channels = (0, 4)
    config.model.norm_num_groups = 2
    config.model.adaptive_norm = True
    config.model.null_condition = "learned"
    config.model.dtype = "float32"
    config.loss.prediction = "velocity"
    config.loss.min_snr_gamma = 5.0
    config.loss.condition_dropout = 0.1
    config.optimizer.learning_rate = 1e-2
    config.optimizer.warmup_steps = 2
    config.optimizer.ema_decay = 0.9
    config.batch_size = 2
    config.num_steps = 22
    config.every.log = 9
    config.every.validate = 20
    config.every.images = 0
    config.every.checkpoint = 20
    config.sampling.num_steps = 4
    config.sampling.guidance = 2.0
    return config

"""The autoencoder of the fixtures: 4 mm volumes to latents of 10x14x10x2."""

from brainldm.training.config import autoencoder_config


def get_config():
    config = autoencoder_config()
    config.covariates.ranges.ventricles_ml = (5.0, 65.0)
    config.covariates.ranges.brain_ml = (1300.0, 1700.0)
    config.data.spacing_mm = 4
    config.data.validation_fraction = 0.3
    config.model.channels = (2, 4, 4)
    config.model.latent_channels = 2
    config.model.num_res_blocks = 1
    config.model.norm_num_groups = 2
    config.model.dtype = "float32"
    config.discriminator.channels = 2
    config.discriminator.num_layers = 2
    config.loss.perceptual = "discriminator"
    config.loss.perceptual_weight = 0.02
    config.loss.adversarial_start = 40
    config.optimizer.learning_rate = 1e-2
    config.optimizer.muon_learning_rate = 0.02
    config.optimizer.discriminator_learning_rate = 1e-3
    config.optimizer.warmup_steps = 5
    config.optimizer.decay = True
    config.batch_size = 1
    config.num_steps = 62
    config.every.log = 29
    config.every.validate = 60
    config.every.images = 0
    config.every.checkpoint = 60
    return config

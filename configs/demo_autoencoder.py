"""Autoencoder of the demo: 4 mm volumes (40x56x40) to latents of 10x14x10x3, on two CPU cores.

    brainldm train --config configs/demo_autoencoder.py --workdir runs/ae --config.data.path=DATASET

`:tiny` shrinks it to a few steps of a very small network, for tests.
"""

from brainldm.training.config import autoencoder_config


def get_config(arg: str = ""):
    config = autoencoder_config()
    config.data.spacing_mm = 4
    config.data.validation_fraction = 0.06
    config.model.channels = (8, 16, 32)
    config.model.num_res_blocks = 1
    config.model.norm_num_groups = 4
    config.model.dtype = "float32"
    config.discriminator.channels = 8
    config.discriminator.num_layers = 2
    config.loss.kl_weight = 1e-6
    config.loss.perceptual = "discriminator"
    config.loss.perceptual_weight = 0.02
    config.loss.adversarial_start = 200
    config.optimizer.learning_rate = 2e-3
    config.optimizer.discriminator_learning_rate = 1e-3
    config.optimizer.warmup_steps = 20
    config.optimizer.decay = True
    config.batch_size = 4
    config.num_steps = 250
    config.every.log = 10
    config.every.validate = 125
    config.every.images = 125
    config.every.checkpoint = 125
    if arg == "tiny":
        config.model.channels = (4, 8, 8)
        config.batch_size = 2
        config.num_steps = 24
        config.loss.adversarial_start = 16
        config.every.log = config.every.validate = config.every.images = config.every.checkpoint = 12
    return config

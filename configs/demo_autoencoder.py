"""Autoencoder of the demo: 4 mm volumes (40x56x40) to latents of 10x14x10x8, on two CPU cores.

    brainldm train --config demo_autoencoder --workdir runs/ae --config.data.path=DATASET

Expected figure: a held-out PSNR of 24.7 dB (200 people; two CPU cores, some four minutes).

`:tiny` shrinks it to a few steps of a very small network, for tests.
"""

from brainldm.training.config import autoencoder_config
from brainldm.training.config_arg import parse_arg


def get_config(arg: str = ""):
    arg = parse_arg(arg, tiny=False)
    config = autoencoder_config()
    # The embedded population fills little of the released model's ranges, and a normalised condition
    # that hardly varies is hardly learnt.
    config.covariates.ranges.ventricles_ml = (5.0, 65.0)
    config.covariates.ranges.brain_ml = (1300.0, 1700.0)
    config.data.spacing_mm = 4
    config.data.validation_fraction = 0.06
    config.model.channels = (8, 16, 64)
    config.model.latent_channels = 8
    config.model.num_res_blocks = 1
    config.model.norm_num_groups = 4
    config.model.dtype = "float32"
    config.discriminator.channels = 8
    config.discriminator.num_layers = 2
    config.loss.kl_weight = 1e-8
    config.loss.perceptual = "discriminator"
    config.loss.perceptual_weight = 0.02
    config.loss.adversarial_start = 400
    config.optimizer.learning_rate = 4e-3
    config.optimizer.muon_learning_rate = 0.012
    config.optimizer.discriminator_learning_rate = 1e-3
    config.optimizer.warmup_steps = 20
    config.optimizer.decay = True
    config.batch_size = 1
    config.num_steps = 480
    config.every.log = 20
    config.every.validate = 160
    config.every.images = config.every.fidelity = 160
    config.every.checkpoint = 160
    if arg.tiny:
        config.model.channels = (4, 8, 8)
        config.batch_size = 2
        config.num_steps = 24
        config.loss.adversarial_start = 16
        config.every.log = config.every.validate = config.every.images = config.every.checkpoint = 12
        config.every.fidelity = 0
    return config

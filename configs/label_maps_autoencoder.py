"""Autoencoder for people made from label maps: 2 mm volumes (80x112x80) to latents of 10x14x10x16, on two CPU cores.

    brainldm population PEOPLE --n 480 --seed 1 --spacing 2 --labels LABEL_MAPS
    brainldm train --config label_maps_autoencoder --workdir runs/ae --config.data.path=PEOPLE

Expected figure: held-out PSNR 26.1 dB, MS-SSIM 0.986, a tenth of the high frequencies (one run, with the adversarial
and matching losses at a quarter and a fifth of these weights up to step 1,846). Ventricles are kept, gyri are soft:
docs/models.md.

`:tiny` shrinks it to a few steps of a very small network, for tests.
"""

from brainldm.training.config import autoencoder_config
from brainldm.training.config_arg import parse_arg


def get_config(arg: str = ""):
    arg = parse_arg(arg, tiny=False)
    config = autoencoder_config()
    # What the people made from label maps fill.
    config.covariates.ranges.ventricles_ml = (5.0, 95.0)
    config.covariates.ranges.brain_ml = (1280.0, 1720.0)
    config.data.spacing_mm = 2
    config.data.validation_fraction = 0.06
    config.data.augment.flip_probability = 0.5
    config.model.architecture = "space_to_depth"
    config.model.channels = (16, 64, 128)
    config.model.num_res_blocks = (1, 2, 2)
    config.model.latent_channels = 16
    config.model.norm_num_groups = 8
    config.model.dtype = "float32"
    config.discriminator.channels = 16
    config.discriminator.num_layers = 3
    config.loss.kl_weight = 5e-8
    config.loss.perceptual = "discriminator"
    config.loss.perceptual_weight = 0.1
    config.loss.adversarial_weight = 0.02
    config.loss.adversarial_start = 1500
    config.optimizer.learning_rate = 3e-3
    config.optimizer.muon_learning_rate = 0.02
    config.optimizer.discriminator_learning_rate = 1e-3
    config.optimizer.warmup_steps = 50
    config.optimizer.decay = True
    config.batch_size = 1
    config.num_steps = 2400
    config.every.log = 20
    config.every.validate = config.every.checkpoint = 200
    config.every.images = config.every.fidelity = 200
    if arg.tiny:
        config.model.channels = (4, 8, 8)
        config.model.num_res_blocks = 1
        config.model.norm_num_groups = 4
        config.discriminator.channels = 4
        config.num_steps = 4
        config.loss.adversarial_start = 2
        config.every.log = config.every.validate = config.every.images = config.every.checkpoint = 2
        config.every.fidelity = 0
    return config

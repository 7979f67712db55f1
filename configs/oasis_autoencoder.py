"""Autoencoder for a small set of real scans on the training grid (OASIS-1, skull-stripped, 18 to 90 years), at 4 mm.

    brainldm train --config oasis_autoencoder --workdir runs/oasis_ae --config.data.path=OASIS

1 mm volumes are averaged down to 4 mm. With a few dozen scans it shows that training runs end to end on real data, not
what the model can do. `brain_ml` of these scans is not normalised for head size.

Expected figure: not measured.

`:tiny` shrinks it to a few steps of a very small network, for tests.
"""

from brainldm.training.config import autoencoder_config
from brainldm.training.config_arg import parse_arg


def get_config(arg: str = ""):
    arg = parse_arg(arg, tiny=False)
    config = autoencoder_config()
    config.covariates.ranges.age = (18.0, 90.0)
    config.covariates.ranges.ventricles_ml = (5.0, 75.0)
    config.covariates.ranges.brain_ml = (900.0, 1700.0)
    config.data.spacing_mm = 4
    config.data.validation_fraction = 0.1
    config.model.channels = (8, 16, 64)
    config.model.latent_channels = 8
    config.model.num_res_blocks = 1
    config.model.norm_num_groups = 4
    config.model.dtype = "float32"
    config.discriminator.channels = 8
    config.discriminator.num_layers = 2
    config.loss.perceptual = "discriminator"
    config.loss.perceptual_weight = 0.02
    config.loss.adversarial_start = 250
    config.optimizer.learning_rate = 4e-3
    config.optimizer.muon_learning_rate = 0.012
    config.optimizer.discriminator_learning_rate = 1e-3
    config.optimizer.warmup_steps = 20
    config.optimizer.decay = True
    config.num_steps = 300
    config.every.log = 20
    config.every.validate = config.every.fidelity = config.every.images = config.every.checkpoint = 100
    if arg.tiny:
        config.model.channels = (4, 8, 8)
        config.num_steps = 24
        config.loss.adversarial_start = 16
        config.every.log = config.every.validate = config.every.images = config.every.checkpoint = 12
        config.every.fidelity = 0
    return config

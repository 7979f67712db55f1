"""Our VAE-GAN baseline at full size: 160x224x160 voxels at 1 mm, without conditions.

    brainldm train --config vae_gan --workdir runs/vae_gan --config.data.path=UKB

The paper compares its LDM with a VAE-GAN and gives neither networks nor settings: these are ours (docs/baselines.md).

Expected figure: not measured at full size. `:demo` after 500 steps: docs/baselines.md.

`:demo` is for the embedded population at 4 mm; `:tiny` shrinks that to a few steps, for tests.
"""

from brainldm.training.config import vae_gan_config
from brainldm.training.config_arg import parse_arg


def get_config(arg: str = ""):
    arg = parse_arg(arg, demo=False, tiny=False)
    config = vae_gan_config()
    config.data.spacing_mm = 1
    config.data.validation_fraction = 0.0125
    config.model.latent_size = 512
    config.model.channels = config.discriminator.channels = (16, 32, 64, 128, 256, 512)
    config.model.norm_num_groups = 16
    config.model.dtype = "bfloat16"
    config.loss.prior_weight = 1e-2
    config.loss.reconstruction_weight = 10.0
    config.loss.discriminator_rest = 1.0
    config.optimizer.learning_rate = 2e-4
    config.optimizer.discriminator_learning_rate = 1e-4
    config.optimizer.beta1 = 0.5
    config.batch_size = 2
    config.num_steps = 150_000
    config.every.log = 100
    config.every.validate = config.every.images = config.every.checkpoint = 5_000
    if arg.demo or arg.tiny:
        config.data.spacing_mm = 4
        config.data.validation_fraction = 0.06
        config.model.latent_size = 64
        config.model.channels = config.discriminator.channels = (16, 32, 64, 128)
        config.model.dtype = "float32"
        config.optimizer.warmup_steps = 20
        config.batch_size = 4
        config.num_steps = 1_000
        config.every.log = 20
        config.every.validate = config.every.images = config.every.checkpoint = 200
    if arg.tiny:
        config.model.latent_size = 8
        config.model.channels = config.discriminator.channels = (4, 8)
        config.model.norm_num_groups = 2
        config.batch_size = 2
        config.num_steps = 6
        config.every.log = config.every.validate = config.every.images = config.every.checkpoint = 3
    return config

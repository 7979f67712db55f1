"""The paper's autoencoder at full size: 160x224x160 voxels at 1 mm to latents of 20x28x20x3.

    brainldm train --config paper_autoencoder --workdir runs/paper_ae --config.data.path=UKB \\
        --config.loss.perceptual_files='("squeezenet1_1.pth", "lpips_squeeze.pth")'

Known from the paper and the released model: the architecture (13,766,248 parameters), 31,740 training volumes, the
loss terms (L1, perceptual, patch-adversarial, KL).
Known from the first author's later public code for the same data (generative_brain, 2023), and inferred to hold for
2022: Adam 5e-5 and 1e-4 (discriminator), gradient clipping at 1, batch 1, 20 epochs, weights 1e-8 (KL), 0.005
(adversarial, from the sixth epoch), 0.002 (LPIPS-SqueezeNet in 2.5D on a quarter of the slices), discriminator of 96
channels and 3 layers, no learning-rate schedule; and the random changes of a tenth of the volumes each: shifts up to a
voxel with scaling up to 2 %, intensities moved up to 0.05, powers from 0.97 to 1.03. The 2022 values themselves were
not published.
Chosen here: bfloat16 computation where the public code has float16 with loss scaling; no random flips (the public code
mirrors half of the volumes: --config.data.augment.flip_probability=0.5), because brains are not symmetric.

Expected figure: not measured (no run at full size yet). docs/scaling.md says what a step needs: 62.8 TFLOP a volume
in convolutions and products.

`:tiny` keeps the recipe and shrinks volumes (4 mm), networks and steps, for tests; feature matching then stands in for
LPIPS, whose weights cannot be shipped.
"""

from brainldm.training.config import autoencoder_config
from brainldm.training.config_arg import parse_arg

SCANS = 31_740


def get_config(arg: str = ""):
    arg = parse_arg(arg, tiny=False)
    config = autoencoder_config()

    # Known: the released model.
    config.data.spacing_mm = 1
    config.model.channels = (64, 128, 128, 128)
    config.model.latent_channels = 3
    config.model.num_res_blocks = 2
    config.model.norm_num_groups = 32
    config.model.norm_eps = 1e-6

    # Inferred from the public code of 2023: losses, discriminator, optimizer, schedule, random changes.
    config.loss.kl_weight = 1e-8
    config.loss.adversarial_weight = 0.005
    config.loss.adversarial_start = 5 * SCANS
    config.loss.perceptual = "lpips"
    config.loss.perceptual_weight = 0.002
    config.loss.perceptual_ratio = 0.25
    config.discriminator.channels = 96
    config.discriminator.num_layers = 3
    config.optimizer.learning_rate = 5e-5
    config.optimizer.discriminator_learning_rate = 1e-4
    config.optimizer.gradient_clip = 1.0
    config.optimizer.warmup_steps = 0
    config.optimizer.decay = False
    config.batch_size = 1
    config.num_steps = 20 * SCANS
    config.data.validation_fraction = 0.0125  # 500 of 40,000 in the public code
    augment = config.data.augment
    augment.affine_probability = augment.shift_probability = augment.contrast_probability = 0.1
    augment.rotation_degrees = 0.0
    augment.translation_mm = 1.0
    augment.scale = 0.02
    augment.shift = 0.05
    augment.gamma = (0.97, 1.03)

    # Chosen here.
    config.model.dtype = "bfloat16"
    augment.flip_probability = 0.0
    config.every.log = 100
    config.every.validate = config.every.checkpoint = 5_000
    config.every.images = config.every.fidelity = 5_000
    if arg.tiny:
        config.data.spacing_mm = 4
        config.data.validation_fraction = 0.2
        config.model.channels = (8, 8, 8)
        config.model.norm_num_groups = 4
        config.model.dtype = "float32"
        config.discriminator.channels = 4
        config.loss.perceptual = "discriminator"
        config.loss.adversarial_start = 2
        config.optimizer.learning_rate = 1e-3
        config.num_steps = 4
        config.every.log = config.every.validate = config.every.images = config.every.checkpoint = 2
        config.every.fidelity = 0
    return config

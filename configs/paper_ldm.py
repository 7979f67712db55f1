"""The paper's diffusion model on latents of 20x28x20x3, conditioned by concatenation and cross-attention.

    brainldm train --config paper_ldm --workdir runs/paper_ldm --config.data.path=UKB \\
        --config.autoencoder=runs/paper_ae

Known from the paper and the released model: the architecture (553,168,899 parameters), hybrid conditioning on sex, age,
ventricular and brain volume, T = 1000 with scaled-linear betas 0.0015 to 0.0205, noise (epsilon) prediction, DDIM
with 50 steps.
Known from the first author's later public code for the same data (generative_brain, 2023), and inferred to hold for
2022: AdamW 2.5e-5 with weight decay 0.01, batch 4, 25 epochs, uniform t, unweighted squared error, no learning-rate
schedule, no warm-up. That code predicts velocity and drops the (text) condition of 10 % of the samples; the released
2022 model does neither.
Chosen here: the latent scale is computed from the data (the released model uses 1), latents are posterior means of the
scans as they are, encoded once (the public code encodes randomly changed scans anew in every step; closest to that:
--config.latents.variants=4 --config.latents.sample=True and the changes of configs/paper_autoencoder.py), a
moving average of the weights with decay 0.9999, gradient clipping at 1, bfloat16 computation.

Expected figure: not measured (no run at full size yet). docs/scaling.md says what a step needs: 4.32 TFLOP a latent in
convolutions and products.

`:tiny` keeps the recipe and shrinks networks and steps, for tests.
"""

from brainldm.training.config import diffusion_config
from brainldm.training.config_arg import parse_arg

SCANS = 31_740


def get_config(arg: str = ""):
    arg = parse_arg(arg, tiny=False)
    config = diffusion_config()

    # Known: the paper and the released model.
    config.data.spacing_mm = 1
    config.covariates.names = ("sex", "age", "ventricles_ml", "brain_ml")
    config.model.channels = (256, 512, 768)
    config.model.num_res_blocks = 2
    config.model.attention_levels = (False, True, True)
    config.model.num_head_channels = (0, 512, 768)
    config.model.norm_num_groups = 32
    config.model.norm_eps = 1e-6
    config.model.resblock_updown = True
    config.model.transformer_num_layers = 1
    config.model.concat = config.model.cross_attention = True
    config.model.adaptive_norm = False
    config.schedule.kind = "scaled_linear"
    config.schedule.beta_start = 0.0015
    config.schedule.beta_end = 0.0205
    config.schedule.num_train_steps = 1000
    config.loss.prediction = "epsilon"
    config.sampling.num_steps = 50
    config.sampling.eta = 0.0

    # Inferred from the public code of 2023: optimizer, batch, epochs, loss.
    config.optimizer.learning_rate = 2.5e-5
    config.optimizer.weight_decay = 0.01
    config.optimizer.warmup_steps = 0
    config.optimizer.decay = False
    config.loss.min_snr_gamma = 0.0
    config.loss.condition_dropout = 0.0
    config.batch_size = 4
    config.num_steps = 25 * SCANS // 4
    config.data.validation_fraction = 0.0125  # 500 of 40,000 in the public code

    # Chosen here.
    config.latent_scale = 0.0  # 1 / std of the posterior means of the training set
    config.latents.variants = 1
    config.latents.sample = False
    config.optimizer.ema_decay = 0.9999
    config.optimizer.gradient_clip = 1.0
    config.model.dtype = "bfloat16"
    config.every.log = 100
    config.every.validate = config.every.images = config.every.checkpoint = 5_000
    if arg.tiny:
        config.data.spacing_mm = 4
        config.data.validation_fraction = 0.2
        config.model.channels = (8, 16)
        config.model.attention_levels = (False, True)
        config.model.num_head_channels = (0, 16)
        config.model.norm_num_groups = 4
        config.model.dtype = "float32"
        config.optimizer.learning_rate = 1e-3
        config.num_steps = 4
        config.every.log = config.every.validate = config.every.images = config.every.checkpoint = 2
        config.sampling.num_steps = 2
    return config

"""The paper's diffusion model on latents of 20x28x20x3, conditioned by concatenation and cross-attention.

    brainldm train --config configs/paper_ldm.py --workdir runs/paper_ldm --config.data.path=UKB \\
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

`:tiny` keeps the recipe and shrinks networks and steps, for tests.
"""

from brainldm.training.config import diffusion_config

SCANS = 31_740


def get_config(arg: str = ""):
    config = diffusion_config()  # architecture, schedule and learning rate: the defaults are the paper's
    config.batch_size = 4
    config.num_steps = 25 * SCANS // 4
    config.data.validation_fraction = 0.0125
    config.every.log = 100
    config.every.validate = config.every.images = config.every.checkpoint = 5_000
    if arg == "tiny":
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

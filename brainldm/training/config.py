"""Every key that a training run knows, with the default of each. A config file starts from one of these.

The defaults describe networks of full size. A config file states what its result depends on: those of the paper in
configs/ name every value that is known of it, or inferred, and from where.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from typing import Any

import ml_collections

from brainldm.datasets.covariates import Covariates, parse_extra
from brainldm.diffusion.sampling import Sampling
from brainldm.runtime.errors import UserError
from brainldm.runtime.rules import shown
from brainldm.training.config_rules import check_values


def _common(stage: str) -> ml_collections.ConfigDict:
    covariates = Covariates()
    config = ml_collections.ConfigDict()
    config.stage = stage
    config.seed = 0

    config.data = data = ml_collections.ConfigDict()
    data.path = ""  # root of a BIDS dataset
    data.spacing_mm = 1  # 1, 2 or 4; a finer dataset is averaged down
    data.scaling = "minmax"  # "minmax" per volume, or "none" for values in [0, 1] already
    data.max_excluded = 0.0  # fraction of the scans that may be left out because their row or image cannot be used
    # Shares of the people, by a hash of their ids; a column `split` in participants.tsv counts instead where there is
    # one. Test scans are left alone by training.
    data.validation_fraction = 0.05
    data.test_fraction = 0.0
    data.cache_gib = 4.0  # images kept in memory
    data.cache_dir = ""  # folder for unpacked copies of .nii.gz that do not fit into memory; "": none are made
    data.threads = 2  # threads that read ahead
    data.prefetch = 0  # batches that wait in memory at most; 0: two per thread

    # Random changes of training volumes, each with the probability of one volume being changed; 0: never.
    data.augment = augment = ml_collections.ConfigDict()
    augment.flip_probability = 0.0  # left and right; brains are not symmetric
    augment.affine_probability = 0.0
    augment.rotation_degrees = 0.0  # up to this around each axis
    augment.translation_mm = 1.0  # up to this along each axis
    augment.scale = 0.02  # factors of each axis from 1 - scale to 1 + scale
    augment.shift_probability = 0.0
    augment.shift = 0.05  # of all intensities, up to this either way
    augment.contrast_probability = 0.0
    augment.gamma = (0.97, 1.03)  # range of the power

    config.covariates = ml_collections.ConfigDict()
    config.covariates.names = covariates.names
    # Further columns of participants.tsv: "NAME=LOW:HIGH", "NAME[unit]=LOW:HIGH" or "NAME=A|B|C".
    config.covariates.extra = ()
    config.covariates.ranges = ml_collections.ConfigDict(
        {item.name: (item.low, item.high) for item in covariates if item.levels is None}
    )

    config.batch_size = 1
    config.accumulation_steps = 1  # microbatches per step; batch_size counts all of them
    config.num_steps = 1

    config.update(running_config())

    config.every = every = ml_collections.ConfigDict()  # in steps; 0 means never
    every.log = 50
    every.validate = 500
    every.images = 1000
    every.checkpoint = 1000
    return config


def running_config() -> ml_collections.ConfigDict:
    """What no step depends on, so that a run may go on with other values: its defaults complete an older config."""
    config = ml_collections.ConfigDict()
    config.mesh = mesh_config()

    # Checkpoints that stay, besides the one with the lowest validation loss.
    config.checkpoints = checkpoints = ml_collections.ConfigDict()
    checkpoints.keep_last = 2  # at least 2 let a run fall back when the newest is damaged
    checkpoints.keep_every = 0  # those whose step is a multiple of this; 0: none

    # What ends a run that hangs, with exit code 75; 0: never.
    config.watchdog_seconds = 1800.0  # without a completed step
    config.heartbeat_seconds = 90.0  # without a sign of life from another process

    # A profile of some steps, for TensorBoard or xprof, into `profile` of the work dir.
    config.profile = profile = ml_collections.ConfigDict()
    profile.first_step = 0  # of the window; the first two after a start compile; 0: none is written
    profile.num_steps = 3
    return config


def mesh_config() -> ml_collections.ConfigDict:
    """How the devices share the work; a run may go on with other values, on other devices.

    The first four are the sizes of the axes, one of which may be -1: what the others leave.
    """
    mesh = ml_collections.ConfigDict()
    mesh.data = -1  # shards of a batch
    mesh.fsdp = 1  # further shards of a batch, which also hold one shard each of what `rules` splits
    mesh.space = 1  # shards of a volume along its first side, in the autoencoder
    mesh.space_y = 1  # and along its second
    # What is split along fsdp: "replicate" (nothing), "fsdp" (the whole state), "zero1" (what the optimizer keeps and
    # the moving average), or pairs ((REGEX, HOW), ...) on paths in the state, HOW being replicate or fsdp, which a
    # command line writes as "REGEX=HOW REGEX=HOW ...".
    mesh.rules = ml_collections.config_dict.placeholder(object)
    mesh.rules = "replicate"
    mesh.min_size = 65536  # elements below which an array is never split
    return mesh


def autoencoder_config() -> ml_collections.ConfigDict:
    """Stage one: AutoencoderKL trained with L1 + KL + perceptual + patch-adversarial loss."""
    config = _common("autoencoder")
    config.init_from = ""  # model folder whose autoencoder training begins with; "": from scratch
    config.every.fidelity = 1000  # similarity, sharpness and ventricles of some held-out reconstructions

    config.model = model = ml_collections.ConfigDict()
    model.architecture = "kl"  # "kl": the paper's; "space_to_depth": every level halves the sides, see docs/models.md
    model.latent_channels = 3
    model.channels = (64, 128, 128, 128)
    # A count, or with space_to_depth also one for each level.
    model.num_res_blocks = ml_collections.FieldReference(2, field_type=object)
    model.norm_num_groups = 32
    model.norm_eps = 1e-6
    model.dtype = "bfloat16"  # of the computation; parameters, statistics and losses are float32
    # Recompute blocks in the backward pass, less memory for more time: True, or the levels at which, as (0, 1).
    model.remat = ml_collections.FieldReference(False, field_type=object)

    config.discriminator = discriminator = ml_collections.ConfigDict()
    discriminator.channels = 96
    discriminator.num_layers = 3

    config.loss = loss = ml_collections.ConfigDict()
    loss.kl_weight = 1e-8
    loss.adversarial_weight = 0.005
    loss.adversarial_start = 0  # the step from which the discriminator is trained and counts
    loss.perceptual = "lpips"  # "lpips", "medicalnet", "discriminator" (feature matching) or "none"
    loss.perceptual_weight = 0.002
    loss.equivariance = 0.0  # probability that a latent is flipped before it is decoded, and compared with its scan so
    loss.perceptual_ratio = 0.25  # fraction of the slices that the 2.5D LPIPS looks at
    loss.perceptual_files = ()  # state dicts of the network: lpips wants squeezenet1_1 and the linear heads

    config.optimizer = optimizer = ml_collections.ConfigDict()
    optimizer.learning_rate = 5e-5
    optimizer.muon_learning_rate = 0.0  # above 0: Muon for the autoencoder's kernels, at this rate
    optimizer.discriminator_learning_rate = 1e-4
    optimizer.warmup_steps = 0
    optimizer.decay = False  # cosine decay to zero at num_steps
    optimizer.gradient_clip = 1.0
    return config.lock()


def diffusion_config() -> ml_collections.ConfigDict:
    """Stage two: DiffusionUNet trained to denoise the latents of a frozen autoencoder."""
    config = _common("diffusion")
    config.autoencoder = ""  # work dir of stage one, or a model folder
    config.every.ema_snapshots = 1000  # of the averages of optimizer.power_ema, where they are kept
    config.init_from = ""  # model folder whose denoising network training begins with; "": from scratch

    config.latents = latents = ml_collections.ConfigDict()
    latents.path = ""  # folder of the encoded scans, which several runs may share; "": `latents` in the work dir
    latents.variants = 1  # encodings of a scan: itself, and further ones changed as config.data.augment says
    latents.sample = False  # train on draws from the posterior instead of its means

    config.model = model = ml_collections.ConfigDict()
    model.channels = (256, 512, 768)
    model.num_res_blocks = 2
    model.attention_levels = (False, True, True)
    model.num_head_channels = (0, 512, 768)
    model.norm_num_groups = 32
    model.norm_eps = 1e-6
    model.resblock_updown = True
    model.transformer_num_layers = 1
    model.concat = True  # the three ways in for the conditions
    model.cross_attention = True
    model.adaptive_norm = False
    model.null_condition = "-1"  # what stands for "no condition": a number, or "learned"
    # Recompute blocks in the backward pass, less memory for more time: True, or the levels at which, as (0, 1).
    model.remat = ml_collections.FieldReference(False, field_type=object)
    model.dtype = "bfloat16"

    config.schedule = schedule = ml_collections.ConfigDict()
    schedule.kind = "scaled_linear"  # "linear", "scaled_linear", "cosine" or "rectified_flow"
    schedule.beta_start = 0.0015
    schedule.beta_end = 0.0205
    schedule.num_train_steps = 1000

    config.loss = loss = ml_collections.ConfigDict()
    loss.prediction = "epsilon"  # "epsilon", "velocity", "x0" or "flow"
    loss.times = "uniform"  # which time steps are trained: "uniform" or "logit_normal"
    loss.min_snr_gamma = 0.0  # 0: every time step counts the same
    loss.condition_dropout = 0.0  # fraction of samples that see the null condition, for classifier-free guidance
    # Fraction of each single condition that is not given, apart from the others: any subset can then be asked for.
    loss.covariate_dropout = 0.0

    config.latent_scale = 0.0  # 0: 1 / std of the posterior means of the training set

    config.optimizer = optimizer = ml_collections.ConfigDict()
    optimizer.learning_rate = 2.5e-5
    optimizer.muon_learning_rate = 0.0  # above 0: Muon for the kernels, at this rate
    optimizer.warmup_steps = 0
    optimizer.decay = False
    optimizer.weight_decay = 0.01
    optimizer.gradient_clip = 1.0
    optimizer.ema_decay = 0.9999  # 0: no moving average
    optimizer.power_ema = False  # keep two more averages, of which `export --ema-length` makes one of any length

    config.sampling = sampling = ml_collections.ConfigDict()  # of the images, and the model folder's defaults
    sampling.num_steps = 50
    sampling.eta = 0.0  # 0: deterministic DDIM, 1: ancestral
    sampling.guidance = 1.0  # of the conditions; 1: none
    sampling.guidance_interval = (0.0, 1.0)  # noise levels, 0 clean and 1 pure noise, at which there is guidance
    sampling.sampler = "ddim"  # "ddim", "ddpm", "dpmpp_2m" (DPM-Solver++(2M)) or "heun"
    sampling.spacing = "leading"  # of the noise levels: "leading", "trailing", "karras", "log_snr" or "monai"
    return config.lock()


def lsgan_config() -> ml_collections.ConfigDict:
    """Our baseline: a generator and a discriminator of volumes, trained with least squares, without conditions."""
    return _gan("lsgan").lock()


def vae_gan_config() -> ml_collections.ConfigDict:
    """Our baseline: the same with an encoder, which learns from the discriminator's features; without conditions."""
    config = _gan("vae_gan")
    config.loss = loss = ml_collections.ConfigDict()
    loss.prior_weight = 1e-2  # of the divergence, in nats, in the encoder's loss
    loss.reconstruction_weight = 10.0  # of the features' difference in the generator's loss
    # The discriminator is not trained in a step where its loss is below this (2.08 is that of one that guesses), so
    # that the generator can keep up; 0: always trained.
    loss.discriminator_rest = 1.0
    return config.lock()


def _gan(stage: str) -> ml_collections.ConfigDict:
    config = _common(stage)
    config.covariates.names = ()

    config.model = model = ml_collections.ConfigDict()
    model.latent_size = 512
    model.channels = (16, 32, 64, 128, 256, 512)  # one width for each level, full resolution first
    model.norm_num_groups = 16
    model.norm_eps = 1e-6
    model.dtype = "bfloat16"
    model.remat = ml_collections.FieldReference(False, field_type=object)

    config.discriminator = discriminator = ml_collections.ConfigDict()
    discriminator.channels = (16, 32, 64, 128, 256, 512)

    config.optimizer = optimizer = ml_collections.ConfigDict()
    optimizer.learning_rate = 2e-4
    optimizer.discriminator_learning_rate = 2e-4
    optimizer.beta1 = 0.5  # Adam's memory of gradients
    optimizer.warmup_steps = 0
    optimizer.decay = False
    optimizer.gradient_clip = 1.0
    return config


def brain_age_config() -> ml_collections.ConfigDict:
    """The network of Cole et al. 2017, trained on the ages of a dataset by their mean absolute error."""
    config = _common("brain_age")
    config.covariates.names = ("age",)

    config.model = model = ml_collections.ConfigDict()
    model.channels = (8, 16, 32, 64, 128)  # one width for each block; each halves the sides
    model.dtype = "bfloat16"
    model.remat = ml_collections.FieldReference(False, field_type=object)

    config.optimizer = optimizer = ml_collections.ConfigDict()
    optimizer.learning_rate = 1e-4
    optimizer.warmup_steps = 0
    optimizer.decay = False
    optimizer.weight_decay = 5e-5
    optimizer.gradient_clip = 1.0
    return config.lock()


CONFIGS: dict[str, Callable[[], ml_collections.ConfigDict]] = {
    "autoencoder": autoencoder_config,
    "diffusion": diffusion_config,
    "lsgan": lsgan_config,
    "vae_gan": vae_gan_config,
    "brain_age": brain_age_config,
}
"""The defaults of every stage, by its name."""


def covariates_of(config: ml_collections.ConfigDict) -> Covariates:
    """The conditions that a config names, with its ranges, and after them those of config.covariates.extra.

    Raises UserError for an unknown name, an extra condition that cannot be understood, and one named twice.
    """
    known = Covariates()
    extra = config.covariates.get("extra", ())
    if isinstance(extra, str):  # --config.covariates.extra=NAME=LOW:HIGH, without the brackets of a tuple
        extra = (extra,)
    for text in extra:
        if parse_extra(text).name in known.names:
            raise UserError(
                f"config.covariates.extra: {shown(text)} is one of the standard conditions. Put its name into "
                "config.covariates.names and its range into config.covariates.ranges."
            )
    chosen = Covariates((*(known[name] for name in config.covariates.names), *map(parse_extra, extra)))
    ranges = {name: value for name, value in config.covariates.ranges.items() if name in chosen.names}
    return chosen.with_ranges(ranges)


def validate(config: ml_collections.ConfigDict) -> None:
    """Raise UserError when a config has unknown or absent keys, naming the nearest key, or impossible values."""
    stage = config.get("stage", None)
    if not isinstance(stage, str) or stage not in CONFIGS:
        raise UserError(f"config.stage is {shown(stage)}; it can be {' or '.join(CONFIGS)}.")
    known = set(dict(_items(CONFIGS[stage]())))
    given = set(dict(_items(config)))
    for key in sorted(given - known):
        near = difflib.get_close_matches(key, known, 1)
        hint = f" Did you mean config.{near[0]}?" if near else ""
        raise UserError(f"config.{key}: the {stage} stage has no such setting.{hint}")
    absent = sorted(known - given - {key for key in known if key.startswith("covariates.ranges.")})
    if absent:
        raise UserError(
            f"config.{absent[0]} is not set. Start the config from brainldm.training.config.{stage}_config()."
        )
    check_values(stage, dict(_items(config)))
    if config.batch_size % config.accumulation_steps:
        raise UserError(
            f"config.batch_size {config.batch_size} is not a multiple of "
            f"config.accumulation_steps {config.accumulation_steps}."
        )
    if not config.data.path:
        raise UserError("config.data.path is empty. Name the BIDS dataset: --config.data.path=FOLDER.")
    if stage == "diffusion" and not (config.covariates.names or config.covariates.extra):
        raise UserError(
            "config.covariates names no condition, and the diffusion model wants at least one. Name columns of "
            "participants.tsv in config.covariates.names or config.covariates.extra."
        )
    if stage == "diffusion":
        try:
            Sampling(**config.sampling)
        except UserError as error:
            raise UserError(f"config.sampling: {error}") from error


def _items(config: ml_collections.ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every value."""
    for key, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            yield from _items(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value

"""What is timed: the networks, shapes and batches of each size, and the random inputs of a case."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

WORK = {
    "encode": "volume to the mean and spread of its latent",
    "decode": "latent to volume",
    "unet": "one evaluation of the denoising network",
    "autoencoder_step": "training step of the autoencoder: L1 and KL, both ways, Adam",
    "unet_step": "training step of the denoising network: squared error, both ways, AdamW",
    "ddim": "DDIM from noise to latents",
    "generate": "DDIM from noise to latents, then decode to volumes",
}

CONDITIONS = 4
NUM_TRAIN_STEPS = 1000
KL_WEIGHT = 1e-6
AUTOENCODER_RATE = 1e-4
UNET_RATE, UNET_DECAY = 2.5e-5, 0.01
NULL_CONDITION = -1.0


@dataclasses.dataclass(frozen=True)
class Case:
    """One row: a kind of work (a key of WORK) on one shape.

    `volume` and `latent` are sides, [D, H, W] and [d, h, w]; networks are constructor arguments of
    `brainldm.models.build`, empty where the work does not need one.
    """

    work: str
    batch: int
    autoencoder: dict[str, Any] = dataclasses.field(default_factory=dict)
    unet: dict[str, Any] = dataclasses.field(default_factory=dict)
    volume: tuple[int, ...] = ()
    latent: tuple[int, ...] = ()
    latent_channels: int = 3
    num_steps: int = 0
    guidance: float = 1.0
    dtype: str = "float32"
    note: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what goes in, [B, ..., C]; for a sampler of the latents that it draws."""
        if self.work in ("encode", "autoencoder_step"):
            return (self.batch, *self.volume, 1)
        return (self.batch, *self.latent, self.latent_channels)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """[B, d, h, w, C]."""
        return (self.batch, *self.latent, self.latent_channels)


@dataclasses.dataclass(frozen=True)
class Size:
    """The cases of a size, and how they run.

    rounds: how often each library is asked in its turn. fresh: each case in processes of its own, so that its peak
    memory is its own; otherwise one process for each library does all of them.
    """

    cases: tuple[Case, ...]
    rounds: int
    fresh: bool = True


def inputs(case: Case) -> dict[str, np.ndarray]:
    """The same random arrays for every library, channels last; the work of `case` takes what it needs."""
    rng = np.random.default_rng(0)
    arrays = {
        "latent": rng.standard_normal(case.latent_shape, np.float32),
        "noise": rng.standard_normal(case.latent_shape, np.float32),
        "condition": rng.random((case.batch, CONDITIONS), np.float32),
        "t": rng.integers(0, NUM_TRAIN_STEPS, case.batch, np.int32),
    }
    if case.volume:
        arrays["image"] = rng.random((case.batch, *case.volume, 1), np.float32)
    return arrays


def _sides(latent: tuple[int, ...], autoencoder: dict[str, Any]) -> tuple[int, ...]:
    factor = 2 ** (len(autoencoder["channels"]) - 1)
    return tuple(side * factor for side in latent)


def _autoencoder(channels: tuple[int, ...], latent_channels: int, blocks: int, groups: int) -> dict[str, Any]:
    return {
        "channels": channels,
        "latent_channels": latent_channels,
        "num_res_blocks": blocks,
        "norm_num_groups": groups,
    }


def _unet(channels: tuple[int, ...], heads: tuple[int, ...], latent_channels: int, blocks: int, groups: int) -> dict:
    return {
        "in_channels": latent_channels,
        "out_channels": latent_channels,
        "channels": channels,
        "num_res_blocks": blocks,
        "attention_levels": tuple(head > 0 for head in heads),
        "num_head_channels": heads,
        "norm_num_groups": groups,
        "condition_dim": CONDITIONS,
        "null_condition": NULL_CONDITION,
    }


_PAPER_AUTOENCODER = _autoencoder((64, 128, 128, 128), 3, 2, 32)
_PAPER_UNET = _unet((256, 512, 768), (0, 512, 768), 3, 2, 32)
_HALF_UNET = _unet((128, 256, 384), (0, 256, 384), 3, 2, 32)
_PAPER_LATENT = (20, 28, 20)


def _small() -> Size:
    """Compiles in seconds; says that everything runs and agrees, and nothing of speed."""
    autoencoder, unet = _autoencoder((4, 8), 2, 1, 2), _unet((8,), (8,), 2, 1, 2)
    cases = _all(autoencoder, unet, (8, 8, 8), batches=(1, 2, 2), num_steps=2)
    return Size(tuple(case for case in cases if case.work != "generate"), rounds=3, fresh=False)


def _demo() -> Size:
    """The shapes of configs/demo_*.py, less what MONAI does not have: adaptive norms, learned null, Muon."""
    autoencoder, unet = _autoencoder((8, 16, 64), 8, 1, 4), _unet((32, 64), (0, 32), 8, 1, 8)
    return Size(_all(autoencoder, unet, (10, 14, 10), batches=(1, 8, 8), num_steps=20, guidance=4.0), rounds=9)


def _paper_cpu() -> Size:
    """The paper's widths at what two cores do in seconds."""
    half = "UNet of half the width"
    small, smaller = (10, 14, 10), (5, 7, 5)
    volumes = {"autoencoder": _PAPER_AUTOENCODER, "latent": small, "volume": _sides(small, _PAPER_AUTOENCODER)}
    cases = (
        Case("unet", 1, unet=_PAPER_UNET, latent=_PAPER_LATENT),
        Case("decode", 1, **volumes),
        Case("encode", 1, **volumes),
        Case("unet_step", 1, unet=_HALF_UNET, latent=_PAPER_LATENT, note=half),
        Case(
            "autoencoder_step",
            1,
            autoencoder=_PAPER_AUTOENCODER,
            latent=smaller,
            volume=_sides(smaller, _PAPER_AUTOENCODER),
        ),
        Case("ddim", 1, unet=_HALF_UNET, latent=_PAPER_LATENT, num_steps=10, note=half),
    )
    return Size(cases, rounds=5)


def _paper_gpu() -> Size:
    """Everything at full size in bfloat16."""
    return Size(
        _all(_PAPER_AUTOENCODER, _PAPER_UNET, _PAPER_LATENT, batches=(1, 1, 1), num_steps=50, dtype="bfloat16"),
        rounds=9,
    )


def _all(
    autoencoder: dict[str, Any],
    unet: dict[str, Any],
    latent: tuple[int, ...],
    batches: tuple[int, int, int],
    num_steps: int,
    guidance: float = 1.0,
    dtype: str = "float32",
) -> tuple[Case, ...]:
    """Every kind of work; `batches` of volumes, of latents that are trained on, and of latents that are drawn."""
    volumes, trained, drawn = batches
    channels = autoencoder["latent_channels"]
    shared = {"latent": latent, "latent_channels": channels, "dtype": dtype}
    first = {"autoencoder": autoencoder, "volume": _sides(latent, autoencoder), **shared}
    second = {"unet": unet, **shared}
    sampling = {"num_steps": num_steps, "guidance": guidance}
    return (
        Case("encode", volumes, **first),
        Case("decode", volumes, **first),
        Case("unet", drawn, **second),
        Case("autoencoder_step", volumes, **first),
        Case("unet_step", trained, **second),
        Case("ddim", drawn, **second, **sampling),
        Case("generate", drawn, **first, unet=unet, **sampling),
    )


SIZES = ("small", "demo", "paper")


def size_of(name: str, device: str) -> Size:
    """The size `name` (one of SIZES) for a device, "cpu" or "gpu"."""
    if name == "paper":
        return _paper_gpu() if device == "gpu" else _paper_cpu()
    return {"small": _small, "demo": _demo}[name]()

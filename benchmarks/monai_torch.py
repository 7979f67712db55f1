"""The cases through MONAI's networks on PyTorch.

As it comes: eager, PyTorch's own layout. Tuned: channels last, compiled by torch.compile, fused attention. On a GPU
both compute in bfloat16 by autocast where a case asks for it.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.networks.nets import AutoencoderKL, DiffusionModelUNet
from monai.networks.schedulers import DDIMScheduler
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.cases import (
    AUTOENCODER_RATE,
    CONDITIONS,
    KL_WEIGHT,
    NULL_CONDITION,
    NUM_TRAIN_STEPS,
    UNET_DECAY,
    UNET_RATE,
    Case,
    inputs,
)
from brainldm.runtime.errors import UserError

BETAS = {"schedule": "scaled_linear_beta", "beta_start": 0.0015, "beta_end": 0.0205}


def start(device: str, threads: int, tuned: bool) -> Monai:
    """Open the device. Raises UserError when PyTorch has no such device."""
    torch.set_num_threads(threads)
    if device == "gpu" and not torch.cuda.is_available():
        raise UserError("PyTorch sees no GPU here. Install its CUDA build, or choose --device cpu or --only ours.")
    return Monai(torch.device("cuda" if device == "gpu" else "cpu"), tuned)


class Monai:
    """What the worker asks of a library."""

    def __init__(self, device: torch.device, tuned: bool):
        self._device, self._tuned = device, tuned

    def describe(self) -> dict[str, Any]:
        versions = {name: importlib.metadata.version(name) for name in ("torch", "monai")}
        gpu = self._device.type == "cuda"
        return {"versions": versions, "device": torch.cuda.get_device_name() if gpu else "cpu"}

    def product(self) -> tuple[Callable[[], None], float]:
        """A matrix product, and its FLOPs."""
        side, dtype = (8192, torch.bfloat16) if self._device.type == "cuda" else (2048, torch.float32)
        matrix = torch.ones((side, side), dtype=dtype, device=self._device)

        def product() -> None:
            matrix @ matrix
            self._wait()

        return product, 2.0 * side**3

    def peak_bytes(self) -> int | None:
        """Highest memory of the device where it has its own."""
        return torch.cuda.max_memory_allocated() if self._device.type == "cuda" else None

    def write_weights(self, case: Case, folder: Path) -> None:
        for name, network in self._networks(case).items():
            torch.save(network.state_dict(), folder / f"{name}.pt")

    def prepare(self, case: Case, folder: Path) -> Eager:
        networks = {name: network.to(self._device) for name, network in self._networks(case).items()}
        arrays = inputs(case)
        drawn = folder / "drawn.npy"
        arrays["drawn"] = np.load(drawn) if drawn.exists() else arrays["noise"]
        tensors = {name: _first(torch.from_numpy(array).to(self._device)) for name, array in arrays.items()}
        if self._tuned:
            networks = {name: net.to(memory_format=torch.channels_last_3d) for name, net in networks.items()}
            tensors = {
                name: x.contiguous(memory_format=torch.channels_last_3d) if x.ndim == 5 else x
                for name, x in tensors.items()
            }
        return Eager(case, networks, tensors, compile=self._tuned, wait=self._wait)

    def _networks(self, case: Case) -> dict[str, torch.nn.Module]:
        """The same random weights every time: MONAI's own, and small numbers where it starts from zero."""
        torch.manual_seed(0)
        networks = make_networks(case, fused_attention=self._tuned)
        for network in networks.values():
            for parameter in network.parameters():
                if not parameter.any():
                    torch.nn.init.normal_(parameter, std=0.02)
        return networks

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()


def make_networks(case: Case, fused_attention: bool = False) -> dict[str, torch.nn.Module]:
    """MONAI's networks with a case's arguments, on the current device."""
    networks: dict[str, torch.nn.Module] = {}
    if case.autoencoder:
        networks["autoencoder"] = AutoencoderKL(
            spatial_dims=3,
            attention_levels=(False,) * len(case.autoencoder["channels"]),
            with_encoder_nonlocal_attn=False,
            with_decoder_nonlocal_attn=False,
            **case.autoencoder,
        )
    if case.unet:
        arguments = {name: value for name, value in case.unet.items() if not name.endswith("condition")}
        del arguments["condition_dim"]
        networks["unet"] = DiffusionModelUNet(
            spatial_dims=3,
            resblock_updown=True,
            with_conditioning=True,
            cross_attention_dim=CONDITIONS,
            use_flash_attention=fused_attention,
            **{**arguments, "in_channels": arguments["in_channels"] + CONDITIONS},
        )
    return networks


def _first(tensor: torch.Tensor) -> torch.Tensor:
    """Channels last to channels first."""
    return tensor.movedim(-1, 1).contiguous() if tensor.ndim == 5 else tensor


def _last(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.detach().float().cpu()
    return (tensor.movedim(1, -1) if tensor.ndim == 5 else tensor).numpy()


class Eager:
    """A case as PyTorch runs it."""

    def __init__(
        self,
        case: Case,
        networks: dict[str, torch.nn.Module],
        tensors: dict[str, torch.Tensor],
        compile: bool = False,
        wait: Callable[[], None] = lambda: None,
    ):
        self._case, self._tensors, self._wait = case, tensors, wait
        wrap = torch.compile if compile else lambda function: function
        autoencoder, unet = networks.get("autoencoder"), networks.get("unet")
        if autoencoder:
            self._encode, self._decode = wrap(autoencoder.encode), wrap(autoencoder.decode)
        if unet:
            self._unet = wrap(unet)
        self._optimizer = None
        if case.work == "autoencoder_step":
            self._optimizer = torch.optim.Adam(autoencoder.parameters(), AUTOENCODER_RATE)
        elif case.work == "unet_step":
            self._optimizer = torch.optim.AdamW(unet.parameters(), UNET_RATE, weight_decay=UNET_DECAY)
        self._trained = autoencoder if case.work == "autoencoder_step" else unet
        self._run = getattr(self, f"_run_{case.work}")

    def first(self) -> None:
        self.again()

    def again(self) -> None:
        bfloat16 = self._case.dtype == "bfloat16"
        with torch.autocast(self._tensors["latent"].device.type, torch.bfloat16, enabled=bfloat16):
            if self._optimizer is None:
                with torch.inference_mode():
                    self._output = self._run()
            else:
                self._output = (self._run(),)
        self._wait()

    def results(self) -> dict[str, np.ndarray]:
        if self._optimizer is None:
            return {f"output_{index}": _last(tensor) for index, tensor in enumerate(self._output)}
        moments = {
            f"gradient/{name}": self._optimizer.state[parameter]["exp_avg"].detach().cpu().numpy()
            for name, parameter in self._trained.named_parameters()
        }
        return {"loss": _last(self._output[0]), **moments}

    def costs(self) -> dict[str, float | None]:
        """FLOPs of convolutions and products, counted on shapes alone."""
        with torch.device("meta"):
            tensors = {name: torch.empty_like(x, device="meta") for name, x in self._tensors.items()}
            shapes = Eager(self._case, make_networks(self._case), tensors)
        with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(self._optimizer is not None):
            shapes._run()
        return {"flops": float(counter.get_total_flops()), "bytes": None}

    def _run_encode(self) -> tuple[torch.Tensor, ...]:
        return self._encode(self._tensors["image"])

    def _run_decode(self) -> tuple[torch.Tensor, ...]:
        return (self._decode(self._tensors["latent"]),)

    def _run_unet(self) -> tuple[torch.Tensor, ...]:
        return (self._predict(self._tensors["latent"], self._tensors["t"], self._tensors["condition"]),)

    def _run_ddim(self) -> tuple[torch.Tensor, ...]:
        return (self._drawn(),)

    def _run_generate(self) -> tuple[torch.Tensor, ...]:
        return (self._decode(self._drawn()).clamp(0.0, 1.0)[:, 0],)

    def _run_autoencoder_step(self) -> torch.Tensor:
        image = self._tensors["image"]
        mu, sigma = self._encode(image)
        reconstruction = self._decode(mu + sigma * self._tensors["noise"])
        kl = 0.5 * (mu**2 + sigma**2 - 2 * torch.log(sigma) - 1).sum() / image.shape[0]
        return self._update(F.l1_loss(reconstruction, image) + KL_WEIGHT * kl)

    def _run_unet_step(self) -> torch.Tensor:
        latent, noise, t = (self._tensors[name] for name in ("latent", "noise", "t"))
        noisy = DDIMScheduler(NUM_TRAIN_STEPS, **BETAS).add_noise(latent, noise, t)
        return self._update(F.mse_loss(self._predict(noisy, t, self._tensors["condition"]).float(), noise))

    def _update(self, loss: torch.Tensor) -> torch.Tensor:
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        return loss

    def _predict(self, x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """The network with its conditions concatenated and as a token of the cross-attention."""
        spread = condition[:, :, None, None, None].expand(-1, -1, *x.shape[2:])
        return self._unet(torch.cat([x, spread], dim=1), t, condition[:, None])

    def _drawn(self) -> torch.Tensor:
        """DDIM from the noise that brainldm starts from, at the time steps of the released brain LDM."""
        scheduler = DDIMScheduler(NUM_TRAIN_STEPS, clip_sample=False, **BETAS)
        scheduler.set_timesteps(self._case.num_steps)
        stride = NUM_TRAIN_STEPS // self._case.num_steps
        x, condition, guidance = self._tensors["drawn"], self._tensors["condition"], self._case.guidance
        null = torch.full_like(condition, NULL_CONDITION)
        for t in range(stride * (self._case.num_steps - 1), -1, -stride):
            if guidance == 1:
                output = self._predict(x, torch.full((len(x),), t, device=x.device), condition)
            else:
                times = torch.full((2 * len(x),), t, device=x.device)
                both = self._predict(torch.cat([x, x]), times, torch.cat([condition, null]))
                given, without = both.chunk(2)
                output = without + guidance * (given - without)
            x, _ = scheduler.step(output, t, x)
        return x

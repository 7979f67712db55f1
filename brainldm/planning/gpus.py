"""GPUs as XLA's compiler is told of them, in protobuf text, so that it compiles for one that is not there."""

from __future__ import annotations

import dataclasses

from brainldm.planning.chips import Chip

PER_HOST = 8
"""GPUs of one machine; a larger number has to be a multiple."""


@dataclasses.dataclass(frozen=True)
class _Device:
    """What the compiler chooses kernels and tilings by. Shared memory in bytes; the clock in GHz."""

    text: str
    capability: tuple[int, int]
    cores: int
    float32_per_core: int
    clock: float
    l2_cache: int
    shared_per_core: int
    shared_per_block: int


_DEVICES = {
    "a100": _Device("NVIDIA A100-SXM4-80GB", (8, 0), 108, 64, 1.41, 40 * 2**20, 164 * 2**10, 163 * 2**10),
    "h100": _Device("NVIDIA H100 80GB HBM3", (9, 0), 132, 128, 1.98, 50 * 2**20, 228 * 2**10, 227 * 2**10),
    "h200": _Device("NVIDIA H200", (9, 0), 132, 128, 1.98, 50 * 2**20, 228 * 2**10, 227 * 2**10),
}


@dataclasses.dataclass(frozen=True)
class Gpus:
    """A number of GPUs of one kind."""

    chip: Chip
    devices: int

    @property
    def name(self) -> str:
        return f"{self.devices} x {self.chip.name}"

    @property
    def topology(self) -> str:
        """Slices, machines and GPUs of a machine, as XLA writes them."""
        hosts = max(1, self.devices // PER_HOST)
        return f"1x{hosts}x{self.devices // hosts}"

    @property
    def description(self) -> str:
        """The device as a GpuTargetConfigProto in text form."""
        device = _DEVICES[self.chip.name]
        major, minor = device.capability
        return f"""
            gpu_device_info {{
              threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
              shared_memory_per_block: 49152 shared_memory_per_core: {device.shared_per_core}
              shared_memory_per_block_optin: {device.shared_per_block}
              core_count: {device.cores} fpus_per_core: {device.float32_per_core} clock_rate_ghz: {device.clock}
              block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
              memory_bandwidth: {self.chip.memory_bandwidth:.0f} device_memory_size: {self.chip.capacity:.0f}
              l2_cache_size: {device.l2_cache} registers_per_core_limit: 65536 registers_per_block_limit: 65536
              cuda_compute_capability {{ major: {major} minor: {minor} }}
            }}
            platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 12 }} runtime_version {{ major: 13 }}
            device_description_str: "{device.text}"
        """


GPUS = tuple(_DEVICES)
"""Names of the GPUs that can be planned for."""

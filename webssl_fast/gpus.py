"""GPUs as data: what a plan and the metrics need to know of one. Imports nothing of ours.

Figures are NVIDIA's, from the data sheet that each line names; peaks are dense bf16 on tensor cores, without sparsity.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GPU:
    """`device_name`: what torch.cuda.get_device_name contains. `memory_gb`: 10^9 bytes."""

    device_name: str
    memory_gb: float
    peak_tflops: float
    source: str

    @property
    def memory_bytes(self) -> float:
        """The data sheet's gigabytes taken as 10^9 bytes. A driver shows 5 to 7% more, since memory is built in powers
        of two; a plan leaves that to the allocator's fragmentation."""
        return self.memory_gb * 1e9


# Of several whose `device_name` fits a device, the first counts: the particular ones stand before the general ones.
GPUS = {
    "h100-pcie": GPU("H100 PCIe", 80, 756.0, "H100 data sheet, PCIe"),
    "h100-nvl": GPU("H100 NVL", 94, 835.0, "H100 data sheet, NVL"),
    "h100": GPU("H100", 80, 989.4, "H100 data sheet, SXM"),
    "h200": GPU("H200", 141, 989.4, "H200 data sheet, SXM"),
    "a100-40": GPU("A100-SXM4-40GB", 40, 312.0, "A100 data sheet, 40 GB"),
    "a100-80": GPU("A100", 80, 312.0, "A100 data sheet, 80 GB"),
    "b200": GPU("B200", 180, 2250.0, "Blackwell data sheet, HGX B200: an eighth of 1.4 TB and of 18 PFLOP/s dense"),
}


def gpu_of_device(device_name: str) -> GPU | None:
    """The GPU that torch.cuda.get_device_name describes; None: not in the table."""
    return next((gpu for gpu in GPUS.values() if gpu.device_name in device_name), None)

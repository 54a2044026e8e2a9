"""Where and how fast the work runs: nothing here changes a result."""

import os
from typing import TYPE_CHECKING

from pydantic import BaseModel, Field

if TYPE_CHECKING:
    import torch


class Compute(BaseModel, frozen=True, extra="forbid"):
    """What a run may choose without changing its result."""

    device: str = Field(
        "auto",
        description="`auto` takes a GPU where there is one; or `cpu`, `cuda`, `cuda:1`. Centroids are fitted on all GPUs of "
        "the machine, unless one is named.",
    )
    batch_size: int | None = Field(
        None, ge=1, description="Items in a batch of the model; empty: chosen for the device."
    )
    workers: int | None = Field(None, ge=1, description="Threads that decode; empty: one per core.")
    memory_mib: int = Field(
        1024, ge=16, description="MiB the working arrays of clustering and scoring may take on their device."
    )

    @property
    def budget(self) -> int:
        """Bytes the working arrays may take."""
        return self.memory_mib << 20

    @property
    def worker_count(self) -> int:
        """Threads that decode."""
        if self.workers is not None:
            return self.workers
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    @property
    def torch_device(self) -> "torch.device":
        """The device the work runs on.

        Raises:
            ValueError: the named device does not exist here; names those that do.
        """
        import torch

        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            device = torch.device(self.device)
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            there = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
            message = f"device {self.device!r} cannot be used ({error}); use `auto` or one of {', '.join(there)}"
            raise ValueError(message) from error
        return device

    @property
    def torch_devices(self) -> "tuple[torch.device, ...]":
        """The devices that a fit may divide its work among: all GPUs, or the one that is named; else the CPU.

        Raises:
            ValueError: the named device does not exist here; names those that do.
        """
        import torch

        return devices_meant(self.torch_device, gpus=torch.cuda.device_count())


def devices_meant(device: "torch.device", *, gpus: int) -> "tuple[torch.device, ...]":
    """All GPUs for `cuda`; of any other device, that one.

    Args:
        device: as it is set.
        gpus: how many there are, by what this process may see (`CUDA_VISIBLE_DEVICES`).
    """
    import torch

    if device.type != "cuda" or device.index is not None:
        return (device,)
    return tuple(torch.device("cuda", index) for index in range(gpus))

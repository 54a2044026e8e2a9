"""Where and how fast the work runs: nothing here changes a result, but for the number format that a model chooses by itself."""

import os
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, Field, field_validator, model_validator

if TYPE_CHECKING:
    import torch


class WorkerResources(BaseModel, frozen=True, extra="forbid"):
    """What each worker of a stage is given on a Ray cluster, and how many there are."""

    num_cpus: float | None = Field(
        None,
        gt=0,
        description="CPUs of a worker, which bound its threads; empty: with GPUs their share of the machine's CPUs, else 1.",
    )
    num_gpus: float = Field(0, ge=0, description="GPUs of a worker; below 1, several workers share one.")
    memory_gib: float | None = Field(
        None, gt=0, description="GiB of memory that are reserved for a worker; empty: none are."
    )
    resources: dict[str, float] = Field(
        {}, description="Custom resources that the nodes were started with, such as `{fast_disk: 1}`."
    )
    count: int | None = Field(
        None,
        ge=1,
        description="Workers; empty: as many as the cluster has room for when the stage begins. A cluster that grows on "
        "demand grows to this number.",
    )

    @field_validator("num_gpus")
    @classmethod
    def _whole_above_one(cls, value: float) -> float:
        if value > 1 and value != int(value):
            message = f"{value:g}: above 1, only whole GPUs can be given; use {int(value)} or {int(value) + 1}"
            raise ValueError(message)
        return value


class Compute(BaseModel, frozen=True, extra="forbid"):
    """What a run may choose without changing its result."""

    device: str = Field(
        "auto",
        description="`auto` takes a GPU where there is one; or `cpu`, `cuda`, `cuda:1`. Centroids are fitted on all GPUs of "
        "the machine, unless one is named. Changes no result, but for the model's number format where `precision` is `auto`.",
    )
    batch_size: int | None = Field(
        None, ge=1, description="Items in a batch of the model; empty: chosen for the device."
    )
    decoding_threads: int | None = Field(None, ge=1, description="Threads that decode; empty: one per core.")
    memory_mib: int = Field(
        1024, ge=16, description="MiB the working arrays of clustering and scoring may take on their device."
    )
    engine: Literal["local", "ray"] = Field(
        "local",
        description="`local`: this machine makes everything. `ray`: the run maps its work over the workers of a Ray cluster "
        "(`pip install semdedup-assets[ray]`); see docs/many-machines.md.",
    )
    address: str = Field(
        "auto",
        min_length=1,
        description="The Ray cluster: `auto` finds the one that this machine belongs to, `local` starts one here for the "
        "run, or its address (`10.0.0.1:6379`, `ray://head:10001`).",
    )
    workers: dict[str, WorkerResources] = Field(
        {},
        description="By stage, what each of its Ray workers is given, such as `{embeddings: {num_gpus: 1}, manifests: "
        "{num_cpus: 4}}`. Stages with many tasks have workers of one CPU where they are not named; the others run where "
        "the run does.",
    )
    shared_paths: bool = Field(
        default=False,
        description="Whether local paths (of store, source and checkpoints) are the same files on every machine of the "
        "cluster, as on a network file system. Without it, only URLs are accepted for a cluster of several machines.",
    )
    patience_seconds: float = Field(
        600, gt=0, description="How long a stage waits for a first worker to start before the run fails."
    )

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("workers"), int):
            message = (
                "workers: the number of threads that decode is called `decoding_threads`; `workers` are those of Ray"
            )
            raise ValueError(message)
        return values

    def workers_of(self, stage: str, like: str) -> WorkerResources | None:
        """What each Ray worker of a stage is given, or those of another where its own are not named; None of neither.

        Args:
            stage: its name.
            like: name of the other.
        """
        return self.workers.get(stage, self.workers.get(like))

    @property
    def budget(self) -> int:
        """Bytes the working arrays may take."""
        return self.memory_mib << 20

    @property
    def worker_count(self) -> int:
        """Threads that decode."""
        if self.decoding_threads is not None:
            return self.decoding_threads
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

    @property
    def on_many_machines(self) -> bool:
        """Whether the work may run on machines that do not see this one's files."""
        return self.engine == "ray" and self.address != "local" and not self.shared_paths

    def of_worker(self, threads: int) -> "Compute":
        """The same for a worker that was given so many CPUs; a GPU that it was given is the only one it sees."""
        device = "cpu" if self.device == "cpu" else "auto"
        decoding = min(threads, self.decoding_threads or threads)
        return self.model_copy(update={"device": device, "decoding_threads": decoding, "engine": "local"})


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

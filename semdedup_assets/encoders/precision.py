"""In which number format a model computes."""

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

Precision = Literal["auto", "float32", "bfloat16", "float16"]

PRECISION_DESCRIPTION = (
    "Number format of the model's matrix products; weights stay float32. `auto`: bfloat16 where the GPU or CPU has it "
    "in hardware, else float32. Set `float32` when the same vectors must come from different machines; `float16` "
    "for GPUs without bfloat16."
)


def resolve_dtype(precision: Precision, device: "torch.device") -> "torch.dtype":
    """The number format that a precision stands for on a device."""
    import torch

    if precision != "auto":
        dtype: torch.dtype = getattr(torch, precision)
        return dtype
    return torch.bfloat16 if _has_bfloat16(device) else torch.float32


def _has_bfloat16(device: "torch.device") -> bool:
    import torch

    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        # AVX-512 alone emulates bfloat16, and is slower for it than in float32.
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return False


def autocast(dtype: "torch.dtype", device: "torch.device") -> AbstractContextManager[object]:
    """The context in which a model computes in a number format."""
    import torch

    if dtype == torch.float32:
        return nullcontext()
    return torch.autocast(device.type, dtype=dtype)

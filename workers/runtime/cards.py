"""What the errors of a card mean: out of memory, or a process that can use its card no more.

After a device-side assert, an illegal access or an uncorrectable memory error every later call of the process fails
too: such an error is *sticky*, and only another process can go on. PyTorch has no classes for these errors but for
one, so their words are recognised: CUDA's, cuBLAS's, cuDNN's and ROCm's.
"""

from __future__ import annotations

import errno
from typing import Literal

import torch

_OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "HIPBLAS_STATUS_ALLOC_FAILED",
)
_NOT_STICKY = (
    "no kernel image is available",
    "invalid argument",
    "invalid configuration argument",
    "invalid device function",
    "operation not supported",
    "STATUS_INVALID_VALUE",
    "STATUS_NOT_SUPPORTED",
    "STATUS_ARCH_MISMATCH",
    "STATUS_BAD_PARAM",
)
"""What the program asked for and no card could do: the next call works, and another card would say the same."""
_STICKY = (
    "CUDA error",
    "HIP error",
    "device-side assert",
    "illegal memory access",
    "misaligned address",
    "unspecified launch failure",
    "ECC error",
    "CUBLAS_STATUS_",
    "CUDNN_STATUS_",
    "No CUDA GPUs are available",
    "CUDA driver initialization failed",
    "CUDA unknown error",
)

Trouble = Literal["memory", "card"]


def trouble_of(error: BaseException) -> Trouble | None:
    """`memory` for too little of it, on a card or in the host; `card` for a sticky error; None for anything else."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or getattr(error, "errno", None) == errno.ENOMEM:
        return "memory"
    if not isinstance(error, RuntimeError):
        return None
    text = str(error)
    if any(words in text for words in _OUT_OF_MEMORY):
        return "memory"
    if any(words in text for words in _NOT_STICKY):
        return None
    return "card" if any(words in text for words in _STICKY) else None


def card_of_process() -> str:
    """The UUID of the card that this process uses, or what can be said of it after an error."""
    try:
        return f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"
    except (RuntimeError, AssertionError, AttributeError):
        return "unknown"

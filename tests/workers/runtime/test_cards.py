"""What the errors of a card mean: all words of too little memory and of a lost process, and those of neither."""

from __future__ import annotations

import errno

import pytest
import torch

from workers.runtime.cards import _NOT_STICKY, _OUT_OF_MEMORY, _STICKY, trouble_of

OUT_OF_MEMORY = [
    "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.19 GiB",
    "HIP out of memory. Tried to allocate 2.00 GiB",
    "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call",
    "HIP error: out of memory",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "HIP error: HIPBLAS_STATUS_ALLOC_FAILED when calling `hipblasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "8000000000000 bytes. Error code 12 (Cannot allocate memory)",
    "[enforce fail at alloc_cpu.cpp:80] data. DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes.",
]
STICKY = [
    "CUDA error: device-side assert triggered",
    "HIP error: unspecified launch failure",
    "CUDA error: an illegal memory access was encountered",
    "CUDA error: misaligned address",
    "CUDA error: uncorrectable ECC error encountered",
    "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`",
    "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
    "cuDNN error: CUDNN_STATUS_NOT_INITIALIZED",
    "No CUDA GPUs are available",
    "CUDA driver initialization failed, you might not have a CUDA gpu.",
    "CUDA unknown error - this may be due to an incorrectly set up environment",
]
NEITHER = [
    "mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)",
    "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!",
    "CUDA error: no kernel image is available for execution on the device",
    "CUDA error: invalid argument",
    "CUDA error: invalid configuration argument",
    "CUDA error: invalid device function",
    "CUDA error: operation not supported",
    "CUDA error: CUBLAS_STATUS_INVALID_VALUE when calling `cublasSgemm`",
    "CUDA error: CUBLAS_STATUS_ARCH_MISMATCH when calling `cublasGemmEx`",
    "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED",
    "cuDNN error: CUDNN_STATUS_BAD_PARAM",
]


@pytest.mark.parametrize("text", OUT_OF_MEMORY)
def test_too_little_memory_is_recognised(text: str) -> None:
    assert trouble_of(RuntimeError(text)) == "memory"


@pytest.mark.parametrize("text", STICKY)
def test_a_sticky_error_is_recognised(text: str) -> None:
    assert trouble_of(RuntimeError(text)) == "card"


@pytest.mark.parametrize("text", NEITHER)
def test_what_the_program_did_wrong_is_neither(text: str) -> None:
    """No card is left alone for it."""
    assert trouble_of(RuntimeError(text)) is None


@pytest.mark.parametrize(
    ("words", "texts"), [(_OUT_OF_MEMORY, OUT_OF_MEMORY), (_STICKY, STICKY), (_NOT_STICKY, NEITHER)]
)
def test_each_of_the_words_is_in_a_message_above(words: tuple[str, ...], texts: list[str]) -> None:
    assert all(any(word in text for text in texts) for word in words)


def test_other_errors_of_python_are_judged_by_their_kind() -> None:
    assert trouble_of(MemoryError()) == "memory"
    assert trouble_of(torch.OutOfMemoryError("CUDA out of memory")) == "memory"
    assert trouble_of(OSError(errno.ENOMEM, "Cannot allocate memory")) == "memory"
    assert trouble_of(OSError(errno.ENOSPC, "No space left on device")) is None
    assert trouble_of(ValueError("a file called CUDA error: out of memory")) is None

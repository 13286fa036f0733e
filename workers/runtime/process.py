"""How a worker process settles on the machine before it computes anything.

Three choices that belong to the process and not to the science: on which device it works, how many
threads it takes, and what the C allocator does with the pages of a freed tensor. None of them is part
of a job's key. Scheduling, pinning and memory limits are left to whoever starts the process.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from typing import Literal

import torch

from workers.runtime.visible_cards import CUDA, HIP, ROCR, pinned

_M_TRIM_THRESHOLD = -1  # from glibc's malloc.h
_M_MMAP_THRESHOLD = -3


def device_of_choice() -> torch.device:
    """CUDA where PyTorch sees it, the CPU elsewhere."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def prepare_process(threads: int = 1, card: int | Literal["none"] | None = None) -> None:
    """Take one card, set the thread count and the allocator; call once, before the first large tensor.

    One thread is the default because a node runs several workers and oversubscribed cores slow all of
    them.

    Args:
        threads: of PyTorch's operators on the CPU.
        card: which of the cards that this process sees it keeps to, counted round, or that it takes none; None
            leaves it all of them.

    Raises:
        ValueError: if `threads` is below 1.
    """
    if threads < 1:
        raise ValueError(f"prepare_process: threads is {threads}: give 1 or more")
    if card == "none":
        os.environ.update(dict.fromkeys((CUDA, HIP, ROCR), "-1"))
    elif card is not None:
        take_card(card)
    torch.set_num_threads(threads)
    keep_freed_pages()


def take_card(number: int) -> None:
    """Keep this process to one of the cards that it sees, counted round; CUDA must not have started in it."""
    for name, value in pinned(os.environ, number, amd=torch.version.hip is not None).items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def keep_freed_pages() -> bool:
    """Ask glibc to keep the pages of freed tensors for the next ones; true when it agreed.

    By default every large tensor is mapped afresh and unmapped at once, and touching the new pages costs
    more than a small layer's arithmetic: raising both thresholds made a Hessian-vector product of a
    ConvNet of width 32 on 100 images 1.5 times faster. Elsewhere than on glibc nothing is changed.
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    limits = (1 << 30, 1 << 25)  # a glibc before 2.35 takes 32 MiB at most
    mapped = any(mallopt(_M_MMAP_THRESHOLD, limit) for limit in limits)
    return bool(mapped and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))

"""Work on a card that is recorded once as a CUDA graph and launched again as a whole.

A replay runs the recorded kernels on the same addresses. So the work must find what it reads, and leave what it makes,
in tensors that stay where they are, must neither wait for the card nor copy from the host, and must not depend on a
value that Python has read.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Protocol

import torch

Work = Callable[[], None]
WARM_UPS = 3
"""Runs before a recording: libraries choose their algorithms and take their work space in them."""


_BROKEN: list[torch.cuda.CUDAGraph] = []
"""Graphs whose recording failed."""


class Recorder(Protocol):
    """What takes work down; the one for CUDA below, another in the tests."""

    def record(self, work: Work) -> Work:
        """Do the work some times, on whatever its tensors hold, and return what does it again.

        Raises:
            RuntimeError: it cannot be recorded; other work goes on as before.
        """
        ...


class CudaRecorder:
    """Records on a stream of its own, all work in one pool of memory, so recordings must not run side by side."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, _stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, work: Work) -> Work:
        """See `Recorder`."""
        with torch.cuda.device(self._device):
            current = torch.cuda.current_stream()
            self._stream.wait_stream(current)
            with torch.cuda.stream(self._stream):
                for _ in range(WARM_UPS):
                    work()
                graph = self._captured(work)
            current.wait_stream(self._stream)
        return graph.replay

    def _captured(self, work: Work) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                work()
        except RuntimeError as error:
            self._recover(graph)
            raise RuntimeError(f"not recorded: {_cause(error)}") from error
        return graph

    def _recover(self, broken: torch.cuda.CUDAGraph) -> None:
        """Put right what PyTorch leaves behind when a capture breaks.

        Its allocator of the card goes on counting a capture, at which it would fail when memory runs out. That of the
        host goes on asking the graph about its streams, so the graph has to stay, and its pool of memory is of no more
        use. Its generator of random numbers may refuse to draw until a capture succeeds.
        """
        _BROKEN.append(broken)
        with suppress(RuntimeError, AttributeError):
            torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), self._pool)
            torch._C._cuda_releasePool(torch.cuda.current_device(), self._pool)
        self._pool = torch.cuda.graph_pool_handle()
        with suppress(RuntimeError):
            nothing = torch.zeros(1, device=self._device)
            with torch.cuda.graph(torch.cuda.CUDAGraph(), stream=self._stream):
                nothing.zero_()


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """The stream of all recordings: each stream takes 64 MiB of work space for matrix products and never returns it."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def recorder_for(device: torch.device) -> Recorder | None:
    """The recorder of a device; None where there is none.

    Raises:
        RuntimeError: the card refuses a stream.
    """
    return CudaRecorder(device) if device.type == "cuda" else None


def _cause(error: BaseException) -> str:
    """The first error of a chain, in a line: the end of a broken capture raises one of its own."""
    while error.__context__ is not None:
        error = error.__context__
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"

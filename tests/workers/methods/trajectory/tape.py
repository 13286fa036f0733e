"""A recorder for tests: it takes down operators and tensors, as a CUDA graph takes down kernels and addresses.

What runs again are the operators on the very tensors of the recording, and never the Python code. So a value that
Python read, a tensor that the next iteration makes anew, or a random number drawn in between shows as a wrong result,
and what CUDA refuses while it records is refused here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from workers.methods.trajectory.recorder import Work

_ops = torch.ops.aten
REFUSED = {
    _ops._local_scalar_dense.default: "reads a value",
    _ops.nonzero.default: "has a size that depends on values",
    _ops.masked_select.default: "has a size that depends on values",
    _ops.lift_fresh.default: "copies from the host",
}


class Tape(TorchDispatchMode):
    """The operators of one piece of work, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[torch.Tensor]]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in REFUSED:
            raise RuntimeError(f"operation not permitted when stream is capturing: {function} {REFUSED[function]}")
        result = function(*args, **(kwargs or {}))
        self.calls.append((function, args, kwargs or {}, _tensors(result)))
        return result

    def play(self) -> None:
        """The same again, into the tensors of the first time."""
        with torch.no_grad():
            for function, args, kwargs, results in self.calls:
                for own, new in zip(results, _tensors(function(*args, **kwargs)), strict=True):
                    if own.data_ptr() != new.data_ptr():
                        own.detach().copy_(new)


class TapeRecorder:
    """See `workers.methods.trajectory.recorder.Recorder`; like CUDA's it does nothing while it records.

    Attributes:
        recorded: how many pieces of work were taken down.
        played: how often any of them ran again.
    """

    def __init__(self) -> None:
        self.recorded = self.played = 0

    def record(self, work: Work) -> Work:
        work()
        tape = Tape()
        with tape:
            work()
        self.recorded += 1

        def play() -> None:
            self.played += 1
            tape.play()

        return play


def _tensors(result: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]

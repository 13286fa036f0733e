"""How the forward pass of training is computed: by PyTorch's operators or by compiled code, in float32 or in bfloat16.

The default, `eager` in `float32`, is the module itself. What a recipe asks for by name is in the key, since it moves
the last digits (`compiled`) or most of them (`bfloat16`: the parameters stay float32, the layers' arithmetic has eight
bits of mantissa). Tests always run eagerly in float32, so accuracies are of the network and not of the way it was
trained in.

Compiled code is made for one shape of a batch at a time, so that the same spec never runs through code that an earlier
job of the same process has left, made for another shape.

Steps are never compiled. The optimisers of `torch.optim` import `torch._dynamo` when the first one is made, for the
sake of code that is compiled with them, which costs each worker a second; `SGD` and `Adam` do the same updates, bit for
bit, without it.
"""

from __future__ import annotations

import inspect
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from jobs.errors import BadInput
from jobs.specs import Precision, TrainingEngine

Forward = Callable[[Tensor], Tensor]
Function = TypeVar("Function", bound=Callable[..., Any])
Optimiser = TypeVar("Optimiser", bound=torch.optim.Optimizer)
SHAPES = 256
"""Compiled shapes of a process at most; one more is an error and never a silent return to eager code."""
_WRAPPED = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
"""Methods of every optimiser that PyTorch wraps for its compiler; so it does with `step`."""


@dataclass(frozen=True, kw_only=True)
class Compute:
    """The engine and the precision of training."""

    engine: TrainingEngine = "eager"
    precision: Precision = "float32"

    def forward_of(self, module: nn.Module) -> Forward:
        """Images [n, C, H, W] to float32 logits [n, classes].

        Raises:
            BadInput: compiled code is asked for on a CPU without a C++ compiler.
        """
        forward: Forward = module
        if self.engine == "compiled":
            forward = compiled_function(module, next(module.parameters()).device)
        return forward if self.precision == "float32" else _in_bfloat16(forward)


def compiled_function(function: Function, device: torch.device) -> Function:
    """The function as code compiled for each shape of its arguments, on this kind of device.

    Raises:
        BadInput: there is no C++ compiler, on a CPU.
    """
    compiler = os.environ.get("CXX", "g++")
    if device.type == "cpu" and shutil.which(compiler) is None:
        fix = f"install {compiler}, name another C++ compiler in CXX, or take another engine"
        raise BadInput("recipe", "engine", "compiled", fix)
    import torch._dynamo  # takes a second, which only jobs that compile should pay

    torch._dynamo.config.recompile_limit = SHAPES
    return cast(Function, torch.compile(function, fullgraph=True, dynamic=False))


def _in_bfloat16(forward: Forward) -> Forward:
    def narrow(images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16):
            return forward(images).float()

    return narrow


def without_compiler(optimiser: type[Optimiser]) -> type[Optimiser]:
    """A class of optimisers whose methods do their work and nothing for a compiler; not for differentiable steps."""
    methods: dict[str, Any] = {name: inspect.unwrap(getattr(optimiser, name)) for name in _WRAPPED}
    methods["step"] = torch.no_grad()(inspect.unwrap(optimiser.step))
    return cast(type[Optimiser], type(optimiser.__name__, (optimiser,), methods))


SGD = without_compiler(torch.optim.SGD)
Adam = without_compiler(torch.optim.Adam)

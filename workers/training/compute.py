"""How forward passes are computed: by operators or compiled code, in float32 or bfloat16, and on how many images.

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

import errno
import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from jobs.errors import BadInput
from jobs.specs import Precision, TrainingEngine
from workers.data.stored_images import Images
from workers.runtime.compiler import VARIABLE, require_cxx, use_code_folder
from workers.training.networks import parameter_count

Forward = Callable[[Tensor], Tensor]
Function = TypeVar("Function", bound=Callable[..., Any])
Optimiser = TypeVar("Optimiser", bound=torch.optim.Optimizer)
SHAPES = 256
"""Compiled shapes of a process at most; one more is an error and never a silent return to eager code."""
CACHED_PIXELS = 32 * 32 * 32
"""Pixels of the images that go through a network together on a CPU: 32 CIFAR images."""
LEAST_AT_A_TIME, MOST_AT_A_TIME = 8, 512
HEAVY = 1_000_000
"""Parameters above which a network's weights count for more than its maps: VGG-11, AlexNet, ResNet-18."""
_WRAPPED = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
"""Methods of every optimiser that PyTorch wraps for its compiler; so it does with `step`."""


def images_at_a_time(module: nn.Module, images: Images) -> int:
    """How many of the images [N, C, H, W] go through a network at a time where no gradient is wanted.

    On a CPU so few that their maps stay in its caches, which takes down to half of the time; but many where a network's
    weights, read anew each time, are the larger part. What becomes of an image is the same up to rounding whatever the
    number, unless the network mixes images in eval mode.
    """
    if images.device.type != "cpu" or parameter_count(module) > HEAVY:
        return MOST_AT_A_TIME
    height, width = images.shape[-2:]
    return min(MOST_AT_A_TIME, max(LEAST_AT_A_TIME, CACHED_PIXELS // (height * width)))


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

    A call raises `BadInput` where the compiler cannot take the function, and the OSError or MemoryError of a host that
    has no room for it.

    Raises:
        BadInput: there is no C++ compiler, on a CPU, or the environment turns compilers off.
    """
    if device.type == "cpu":
        require_cxx()
    use_code_folder()
    import torch._dynamo  # takes a second, which only jobs that compile should pay

    if torch._dynamo.config.disable:
        fix = "unset it, or take another engine: other code has other last digits, which this job's key does not name"
        raise BadInput("environment", "TORCH_COMPILE_DISABLE", os.environ.get("TORCH_COMPILE_DISABLE"), fix)
    torch._dynamo.config.recompile_limit = SHAPES
    code = torch.compile(function, fullgraph=True, dynamic=False)

    def call(*arguments: Any) -> Any:
        try:
            return code(*arguments)
        except torch._dynamo.exc.TorchDynamoException as error:
            raise _cause(error) from error

    return cast(Function, call)


def _cause(error: Exception) -> Exception:
    """What an error of the compiler stands for: a host without room, or a function that it cannot take."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError | MemoryError):
            return cause
        if os.strerror(errno.ENOSPC) in str(cause):  # the C++ compiler's own words
            return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.environ.get(VARIABLE))
        cause = getattr(cause, "inner_exception", None) or cause.__cause__
    reason = str(error).strip().partition("\n")[0]
    return BadInput("recipe", "engine", "compiled", f"take another engine; PyTorch's compiler says: {reason}")


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

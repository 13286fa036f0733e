"""SGD and Adam without PyTorch's compiler: the same updates, bit for bit.

The optimisers of `torch.optim` import `torch._dynamo` when the first one is made, for the sake of code that is compiled
with them. Nothing of ours is, and the import costs each worker a second and 60 MB.
"""

from __future__ import annotations

import inspect
from typing import Any, TypeVar, cast

import torch

Optimiser = TypeVar("Optimiser", bound=torch.optim.Optimizer)

_WRAPPED = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
"""Methods of every optimiser that PyTorch wraps for its compiler; so it does with `step`."""


def without_compiler(optimiser: type[Optimiser]) -> type[Optimiser]:
    """A class of optimisers whose methods do their work and nothing for a compiler; not for differentiable steps."""
    methods: dict[str, Any] = {name: inspect.unwrap(getattr(optimiser, name)) for name in _WRAPPED}
    methods["step"] = torch.no_grad()(inspect.unwrap(optimiser.step))
    return cast(type[Optimiser], type(optimiser.__name__, (optimiser,), methods))


SGD = without_compiler(torch.optim.SGD)
Adam = without_compiler(torch.optim.Adam)

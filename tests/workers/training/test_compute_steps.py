"""The optimisers without PyTorch's compiler: the updates of PyTorch's own, and no compiler imported by training."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from workers.training.compute import SGD, Adam


def after_training(optimiser: type[torch.optim.Optimizer], **settings: object) -> list[torch.Tensor]:
    """The parameters of a small network after five steps, the state saved and loaded once."""
    generator = torch.Generator().manual_seed(0)
    parameters = [torch.randn(4, 3, generator=generator).requires_grad_(), torch.randn(4, generator=generator)]
    parameters[1].requires_grad_()
    steps = optimiser(parameters, **settings)  # type: ignore[arg-type]
    for number in range(5):
        steps.zero_grad()
        loss = torch.nn.functional.linear(torch.full((2, 3), float(number)), *parameters).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        steps.step()
        steps.load_state_dict(steps.state_dict())
    return parameters


@pytest.mark.parametrize(
    ("ours", "plain", "settings"),
    [
        (SGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4, "fused": True}),
        (SGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.5, "foreach": False}),
        (Adam, torch.optim.Adam, {"lr": 0.1, "betas": (0.5, 0.95), "foreach": False}),
    ],
)
def test_updates_are_those_of_pytorch_bit_for_bit(
    ours: type[torch.optim.Optimizer], plain: type[torch.optim.Optimizer], settings: dict[str, object]
) -> None:
    """What is left out changes no number."""
    pairs = zip(after_training(ours, **settings), after_training(plain, **settings), strict=True)
    assert all(torch.equal(mine, theirs) and mine.isfinite().all() for mine, theirs in pairs)


def test_training_imports_no_compiler() -> None:
    """Neither a network nor a step needs `torch._dynamo` or sympy, which take a worker a second and more."""
    code = """
import sys, torch
from tests.workers.training.test_compute_steps import SGD, Adam, after_training
from workers.training.networks import build
for architecture in ("convnet", "resnet10"):
    shape = {"channels": 1, "size": 8, "classes": 2, "width": 8, "depth": None}
    build(architecture, **shape, norm="batch", generator=torch.Generator())
after_training(SGD, lr=0.1, fused=True), after_training(Adam, foreach=False)
print([name for name in ("torch._dynamo", "sympy") if name in sys.modules])
"""
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert printed == "[]\n"

"""The kernels of a block give what the operators give: here in Triton's interpreter, on a card in `tests/gpu`."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="Triton comes with PyTorch for CUDA alone")

AGREE = """
import torch
from workers.methods.trajectory import block_kernels
from workers.training.instance_norm import InstanceNorm, by_operators

block_kernels.require_agreement(torch.device("cpu"))
norm = InstanceNorm(2)
for shape in ((1, 2, 2, 2), (3, 2, 6, 4), (2, 2, 5, 4)):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    pairs = zip(*(block_kernels._derivatives(by, x, norm) for by in (block_kernels.block, by_operators)))
    for own, expected in pairs:
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-4)
"""


@pytest.mark.slow
def test_kernels_agree_with_operators_to_the_second_derivative() -> None:
    """Also of a map with an odd side, which the operators take."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    child = subprocess.run([sys.executable, "-c", AGREE], env=environment, capture_output=True, text=True, timeout=200)
    assert child.returncode == 0, child.stderr[-3000:]

"""How a card rounds the factors of products of float32: a choice of the job's spec, made around each job.

TF32 keeps 10 bits of a factor's mantissa and adds in float32; a card multiplies several times faster with it. PyTorch
holds the choice for the whole process, so it is made when a job begins and taken back at its end: a job computes the
same in a worker as in a Python session. A CPU has no TF32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from jobs.specs import NetworkSpec, Spec, Tf32


def tf32_of(spec: Spec) -> Tf32:
    """The choice of a job's spec; of one without a network the usual one."""
    network = getattr(spec, "network", None)
    return network.tf32 if isinstance(network, NetworkSpec) else NetworkSpec().tf32


def described(device: torch.device, spec: Spec) -> str:
    """What a manifest says of a job's arithmetic: TF32, and whether some of its training is in bfloat16."""
    tf32 = tf32_of(spec)
    products = {"none": "", "convolutions": ", TF32 in convolutions", "all": ", TF32 in all products"}
    text = "float32" + (products[tf32] if device.type == "cuda" else "")
    return f"bfloat16 in training, else {text}" if _narrow(spec.model_dump(mode="json")) else text


def _narrow(document: object) -> bool:
    """Whether a training in a spec, however deep, is in bfloat16."""
    if not isinstance(document, dict):
        return False
    return document.get("precision") == "bfloat16" or any(map(_narrow, document.values()))


@contextmanager
def with_tf32(device: torch.device, tf32: Tf32) -> Iterator[None]:
    """Computing inside with TF32 in those products; nothing changes on a CPU."""
    if device.type != "cuda":
        yield
        return
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32, cudnn.allow_tf32 = tf32 == "all", tf32 != "none"
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before

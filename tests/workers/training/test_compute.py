"""Ways to compute a forward pass of training: the default is the module itself, the others are close and asked for."""

from __future__ import annotations

import errno
import shutil

import pytest
import torch
import torch._dynamo
from pydantic import ValidationError
from torch._inductor.exc import InductorError

from jobs.errors import BadInput
from jobs.specs import SgdSpec, TransitionSpec
from workers.training.compute import Compute
from workers.training.networks import Network, build, flatten
from workers.training.students import fit, trainer_for


def network() -> Network:
    generator = torch.Generator().manual_seed(0)
    return build(
        "convnet", channels=3, size=8, classes=4, width=8, depth=2, norm="instance", generator=generator
    )  # fmt: skip


def trained(**how: str) -> torch.Tensor:
    """The parameters after two epochs, batches of 8 and 4 images."""
    spec = SgdSpec.model_validate({"epochs": 2, "lr": 0.05, "momentum": 0.9, "batch_size": 8, **how})
    module, generator = network(), torch.Generator().manual_seed(1)
    images, labels = torch.randn(12, 3, 8, 8, generator=generator), torch.arange(12) % 4
    fit(trainer_for(module, spec, generator), images, labels, spec)
    return flatten(module)


def moved(**how: str) -> torch.Tensor:
    return trained(**how) - flatten(network())


def test_the_default_is_the_module_itself() -> None:
    module = network()
    assert Compute().forward_of(module) is module
    assert torch.equal(trained(), trained(engine="eager", precision="float32"))


def test_bfloat16_is_near_and_not_the_same_and_leaves_float32_parameters() -> None:
    exact, narrow = moved(), moved(precision="bfloat16")
    assert narrow.dtype == torch.float32
    assert 1e-4 < float((narrow - exact).norm() / exact.norm()) < 0.1
    assert torch.equal(narrow, moved(precision="bfloat16"))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_compiled_code_is_near_and_gives_the_same_bits_again_after_other_shapes() -> None:
    exact, compiled = moved(), moved(engine="compiled")
    assert float((compiled - exact).norm() / exact.norm()) < 1e-4
    Compute(engine="compiled").forward_of(network())(torch.ones(5, 3, 8, 8))
    assert torch.equal(compiled, moved(engine="compiled"))


def test_compiled_code_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(BadInput, match="install no-such-compiler"):
        Compute(engine="compiled").forward_of(network())


def test_compilers_that_the_environment_turns_off_are_no_silent_return_to_eager_code() -> None:
    with torch._dynamo.config.patch(disable=True), pytest.raises(BadInput, match="TORCH_COMPILE_DISABLE"):
        Compute(engine="compiled").forward_of(network())


class NotCompiled(RuntimeError):
    """What PyTorch raises when the C++ compiler fails, with its words."""


@pytest.mark.parametrize(
    ("inner", "expected", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), OSError, "No space left"),
        (NotCompiled("C++ compile error\n/tmp/a.cpp: No space left on device"), OSError, "No space left"),
        (MemoryError("of the host"), MemoryError, "of the host"),
        (NotCompiled("a branch on data\nand its details"), BadInput, "another engine.*a branch on data"),
    ],
)
def test_an_error_of_the_compiler_is_that_of_the_host_or_says_what_to_change(
    inner: Exception, expected: type[Exception], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise InductorError(inner, None)

    monkeypatch.setattr(torch, "compile", lambda *_, **__: fails)
    forward = Compute(engine="compiled").forward_of(network())
    with pytest.raises(expected, match=words):
        forward(torch.ones(1, 3, 8, 8))


def test_both_enter_a_spec_only_where_they_are_asked_for() -> None:
    assert not {"engine", "precision"} & SgdSpec(epochs=1).model_dump().keys()
    assert not {"engine", "precision"} & TransitionSpec(epochs=1).model_dump().keys()
    asked = SgdSpec(epochs=1, engine="compiled", precision="bfloat16").model_dump()
    assert (asked["engine"], asked["precision"]) == ("compiled", "bfloat16")
    with pytest.raises(ValidationError, match="precision"):
        SgdSpec.model_validate({"epochs": 1, "precision": "float16"})

"""Normalisation and whitening against hand-computed numbers and a short float64 reference."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from jobs.datasets import NORMALISATIONS
from workers.data.preprocess import ZCA_EPS, Affine, Zca, arrays, fit_affine, fit_zca, from_arrays, make


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Forty noisy images of 3x4x5 whose neighbouring values are correlated."""
    noise = torch.randint(0, 64, (40, 3, 4, 6), generator=torch.Generator().manual_seed(0))
    return (noise[..., 1:] + 3 * noise[..., :-1]).to(torch.uint8)


def zca_reference(images: Tensor, eps: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Mean, eigenvalues, eigenvectors and whitening matrix, as the formula reads."""
    x = images.numpy().reshape(len(images), -1).astype(np.float64) / 255
    mean = x.mean(axis=0)
    sigma = (x - mean).T @ (x - mean) / (len(x) - 1)
    u, s, _ = np.linalg.svd(sigma)
    return mean, s, u, u @ np.diag((s + eps) ** -0.5) @ u.T


def test_mean_and_deviation_are_those_of_the_population_by_channel() -> None:
    images = torch.tensor([[[[0, 255]], [[51, 51]]], [[[0, 255]], [[51, 255]]]], dtype=torch.uint8)
    fitted = fit_affine(images)
    # channel 0: 0, 1, 0, 1; channel 1: 0.2, 0.2, 0.2, 1, so 3/4 * 0.2^2 + 1/4 * 0.6^2 = 0.12
    torch.testing.assert_close(fitted.mean, torch.tensor([0.5, 0.4]))
    torch.testing.assert_close(fitted.std, torch.tensor([0.5, 0.12**0.5]))
    assert fitted.mean.dtype == fitted.std.dtype == torch.float32


def test_measured_images_have_mean_zero_and_deviation_one(images: Tensor) -> None:
    seen = make("measured", images).forward(images).double()
    torch.testing.assert_close(seen.mean((0, 2, 3)), torch.zeros(3, dtype=torch.float64), atol=1e-6, rtol=0)
    torch.testing.assert_close(seen.std((0, 2, 3), correction=0), torch.ones(3, dtype=torch.float64), atol=1e-6, rtol=0)


def test_a_constant_channel_cannot_be_normalised() -> None:
    with pytest.raises(ValueError, match="constant"):
        fit_affine(torch.full((4, 1, 2, 2), 7, dtype=torch.uint8))


def test_affine_computes_pixel_minus_mean_over_deviation() -> None:
    transform = Affine(torch.tensor([0.5]), torch.tensor([0.25]))
    seen = transform.forward(torch.tensor([[[[0, 255]]]], dtype=torch.uint8))
    assert seen.dtype == torch.float32 and seen.flatten().tolist() == [-2.0, 2.0]


def test_the_inverse_is_not_clamped() -> None:
    transform = Affine(torch.tensor([0.5]), torch.tensor([0.25]))
    assert transform.inverse(torch.tensor([[[[-4.0, 4.0]]]])).flatten().tolist() == [-0.5, 1.5]


@pytest.mark.parametrize("kind", ["measured", "unit", "zca", "cifar10"])
def test_the_inverse_gives_the_pixels_back(images: Tensor, kind: str) -> None:
    transform = make(kind, images)
    back = transform.inverse(transform.forward(images))
    assert back.dtype == torch.float32 and back.shape == images.shape
    torch.testing.assert_close(back, images / 255, atol=1e-5, rtol=0)


def test_unit_leaves_the_pixels_in_zero_to_one(images: Tensor) -> None:
    assert torch.equal(make("unit", images).forward(images), images / 255)


def test_bytes_are_divided_by_a_tensor_on_their_device(images: Tensor) -> None:
    """By a number CUDA multiplies with its rounded reciprocal: a last bit that is not the CPU's, as here."""
    assert not torch.equal(images * torch.tensor(1 / 255), images / 255)
    divisors = list[object]()

    class Divisions(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is Tensor.div:
                divisors.append(args[1])
            return func(*args, **(kwargs or {}))

    with Divisions():
        make("unit", images).forward(images)
    assert len(divisors) == 2 and all(isinstance(one, Tensor) and one.device == images.device for one in divisors)


def test_the_published_constants() -> None:
    assert NORMALISATIONS == {
        "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
        "cifar100": ((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)),
        "cifar100-reference": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
        "tiny-imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        "tiny-imagenet-idc": ((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)),
        "mnist": ((0.1307,), (0.3081,)),
        "fashion-mnist": ((0.2861,), (0.3530,)),
        "svhn": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    }


@pytest.mark.parametrize("name", NORMALISATIONS)
def test_make_takes_constants_by_name_for_their_number_of_channels(name: str) -> None:
    mean, std = NORMALISATIONS[name]
    made = make(name, torch.zeros((1, len(mean), 2, 2), dtype=torch.uint8))
    assert isinstance(made, Affine)
    assert torch.equal(made.mean, torch.tensor(mean)) and torch.equal(made.std, torch.tensor(std))
    with pytest.raises(ValueError, match=f"for {len(mean)} channel"):
        make(name, torch.zeros((1, 2, 2, 2), dtype=torch.uint8))


def test_an_unknown_name_is_answered_with_the_known_ones(images: Tensor) -> None:
    with pytest.raises(ValueError) as error:
        make("imagenet", images)
    assert all(name in str(error.value) for name in ("measured", "unit", "zca", *NORMALISATIONS))


def test_zca_agrees_with_the_formula_in_float64(images: Tensor) -> None:
    mean, _, _, whiten = zca_reference(images, 0.1)
    fitted = fit_zca(images)
    assert ZCA_EPS == 0.1 and fitted.shape == (3, 4, 5)
    np.testing.assert_allclose(fitted.mean.numpy(), mean, atol=1e-7)
    np.testing.assert_allclose(fitted.whiten.numpy(), whiten, atol=2e-6)
    expected = (images.numpy().reshape(40, -1) / 255 - mean) @ whiten
    np.testing.assert_allclose(fitted.forward(images).numpy().reshape(40, -1), expected, atol=1e-5)


@pytest.mark.parametrize("eps", [0.1, 0.01])
def test_whitened_images_have_covariance_s_over_s_plus_eps_on_the_eigenvectors(images: Tensor, eps: float) -> None:
    _, s, u, _ = zca_reference(images, eps)
    white = fit_zca(images, eps).forward(images).flatten(1).double().numpy()
    np.testing.assert_allclose(u.T @ np.cov(white.T) @ u, np.diag(s / (s + eps)), atol=1e-5)


def test_unwhiten_is_the_inverse_of_whiten(images: Tensor) -> None:
    fitted = fit_zca(images)
    torch.testing.assert_close(fitted.whiten @ fitted.unwhiten, torch.eye(60), atol=1e-5, rtol=0)


def test_whitening_joins_the_channels() -> None:
    grey = torch.randint(0, 256, (30, 1, 2, 2), generator=torch.Generator().manual_seed(1))
    fitted = fit_zca(grey.expand(-1, 3, -1, -1).to(torch.uint8))
    red_to_blue = fitted.whiten[:4, 8:]
    assert red_to_blue.diagonal().abs().min() > 0.1


def test_the_fit_does_not_depend_on_the_chunks(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fit_zca(images)
    monkeypatch.setattr("workers.data.preprocess._CHUNK", 7)
    assert torch.equal(fit_zca(images).whiten, whole.whiten)


def test_more_dimensions_than_images_still_whiten() -> None:
    few = torch.randint(0, 256, (3, 1, 4, 4), generator=torch.Generator().manual_seed(2)).to(torch.uint8)
    assert torch.isfinite(fit_zca(few).forward(few)).all()


def test_zca_needs_two_images_and_a_positive_eps(images: Tensor) -> None:
    for given, eps in ((images[:1], 0.1), (images, 0.0)):
        with pytest.raises(ValueError, match="two images and eps"):
            fit_zca(given, eps)


@pytest.mark.parametrize(("kind", "stored_as"), [("measured", "affine"), ("zca", "zca")])
def test_a_stored_transform_comes_back_bit_for_bit(images: Tensor, kind: str, stored_as: str) -> None:
    made = make(kind, images)
    stream = io.BytesIO()
    np.savez(stream, **arrays(made))  # type: ignore[arg-type]
    stream.seek(0)
    with np.load(stream, allow_pickle=False) as stored:
        back = from_arrays(stored_as, dict(stored))
    assert type(back) is type(made)
    assert torch.equal(back.forward(images), made.forward(images))
    assert not isinstance(back, Zca) or back.shape == (3, 4, 5)


def test_another_kind_of_stored_transform_is_refused() -> None:
    with pytest.raises(ValueError, match="affine and zca"):
        from_arrays("pca", {})

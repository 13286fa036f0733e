"""Ridge regression on features against its definition, solved image by image in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.workers.matched import generator
from workers.methods.ridge.regression import centred_targets, predictions, squared_error


def features(n: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(n, 7, generator=generator(seed), dtype=torch.float64).to(dtype)


def test_targets_are_one_hot_less_their_mean() -> None:
    targets = centred_targets(torch.tensor([2, 0]), 4)
    assert targets.tolist() == [[-0.25, -0.25, 0.75, -0.25], [0.75, -0.25, -0.25, -0.25]]


@pytest.mark.parametrize(("n", "ridge"), [(4, 1e-6), (12, 1e-3)])
def test_predictions_are_those_of_the_weights_that_least_squares_with_a_ridge_finds(n: int, ridge: float) -> None:
    """The primal form: W = argmin |F_s W - Y|^2 + penalty |W|^2, solved with d x d matrices, then F_t W."""
    synthetic, real, targets = features(n, 1), features(5, 2), centred_targets(torch.arange(n) % 3, 3)
    f, t, y = (tensor.numpy() for tensor in (synthetic, real, targets))
    penalty = ridge * sum(float(row @ row) for row in f) / n
    weights = np.linalg.inv(f.T @ f + penalty * np.eye(7)) @ f.T @ y
    np.testing.assert_allclose(predictions(synthetic, targets, real, ridge).numpy(), t @ weights, rtol=1e-7, atol=1e-9)


def test_float32_features_lose_nothing_after_the_network() -> None:
    """30 images in 7 dimensions: a kernel that float32 could not factorise at this ridge."""
    synthetic, real, targets = features(30, 1, torch.float32), features(5, 2, torch.float32), torch.eye(30).double()
    again = predictions(synthetic.double(), targets, real.double(), 1e-6)
    assert torch.equal(predictions(synthetic, targets, real, 1e-6), again) and bool(again.isfinite().all())


def test_the_gradients_of_features_and_targets_are_right_to_finite_differences() -> None:
    synthetic, targets = features(4, 1).requires_grad_(), centred_targets(torch.arange(4) % 3, 3).requires_grad_()
    with torch.random.fork_rng():
        assert torch.autograd.gradcheck(
            lambda x, y: squared_error(predictions(x, y, features(5, 2), 1e-3), torch.arange(5) % 3),
            (synthetic, targets),
        )


def test_an_error_counted_by_hand() -> None:
    """Targets are +-0.5: distances of 0.5, 2.5, 0.5 and 0.5 from them."""
    predicted = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    assert float(squared_error(predicted, torch.tensor([0, 1]))) == pytest.approx(0.5 * (6.5 + 0.5) / 2)


def test_features_that_are_no_numbers_predict_none() -> None:
    broken = features(4, 1)
    broken[0, 0] = float("inf")
    assert bool(predictions(broken, centred_targets(torch.arange(4) % 3, 3), features(5, 2), 1e-6).isnan().all())

"""Kernel ridge regression from synthetic images to real ones: what FRePo and RFAD share.

With features F_s [n, d] of the synthetic images, F_t [m, d] of real ones and targets Y_s [n, classes],

    predictions = F_t F_s^T (F_s F_s^T + ridge * tr(F_s F_s^T) / n * I)^-1 Y_s,

which is what a linear classifier fitted to the synthetic images by least squares says about the real ones. Everything
from the features on is in float64: with a ridge of 1e-6 of the kernel's mean diagonal, float32 leaves too few digits.
"""

from __future__ import annotations

import torch
from torch import Tensor


def centred_targets(labels: Tensor, classes: int) -> Tensor:
    """One-hot targets less their mean, float64 [n, classes], for labels int64 [n]; each row sums to 0."""
    return torch.eye(classes, dtype=torch.float64, device=labels.device)[labels] - 1 / classes


def predictions(synthetic: Tensor, targets: Tensor, real: Tensor, ridge: float) -> Tensor:
    """What ridge regression on the synthetic images predicts for the real ones: float64 [m, classes].

    Args:
        synthetic: their features, [n, d]; differentiated.
        targets: float64 [n, classes]; differentiated.
        real: their features, [m, d].
        ridge: as a share of the mean of the kernel's diagonal.

    Returns:
        The predictions; not a number where the features leave no kernel to invert.
    """
    fitted = synthetic.double()
    kernel = fitted @ fitted.T
    diagonal = fitted.square().sum() / len(fitted)
    penalty = ridge * diagonal * torch.eye(len(kernel), dtype=kernel.dtype, device=kernel.device)
    factor, failed = torch.linalg.cholesky_ex(kernel + penalty)
    predicted = (real.double() @ fitted.T) @ torch.cholesky_solve(targets, factor)
    return torch.where(failed > 0, torch.nan, predicted)


def squared_error(predicted: Tensor, targets: Tensor) -> Tensor:
    """Half the squared distance of predictions [m, classes] from their targets, in the mean over images; []."""
    return 0.5 * (predicted - targets).square().sum(1).mean()

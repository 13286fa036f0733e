"""Multi-formation: f*f training images in each stored one."""

from __future__ import annotations

import pytest
import torch

from workers.data.multi_formation import compose, decode
from workers.data.synthetic_set import SyntheticSet, union


def drawn(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def test_a_factor_of_one_changes_nothing() -> None:
    images = drawn(2, 3, 4, 4)
    assert torch.equal(decode(images, 1), images) and torch.equal(compose(images, 1), images)


def test_each_tile_becomes_a_full_image_row_by_row() -> None:
    stored = torch.arange(4.0).reshape(1, 1, 2, 2)
    decoded = decode(stored, 2)
    assert decoded.shape == (4, 1, 2, 2)
    assert [image.unique().tolist() for image in decoded] == [[0.0], [1.0], [2.0], [3.0]]


def test_a_tile_is_upsampled_bilinearly_by_itself() -> None:
    stored = torch.zeros(1, 1, 4, 4)
    stored[0, 0, :2, :2] = torch.tensor([[0.0, 4.0], [0.0, 4.0]])
    row = decode(stored, 2)[0, 0, 0]  # half-pixel centres: 0, a quarter of the way, three quarters, 4
    assert row.tolist() == [0.0, 1.0, 3.0, 4.0]


def test_composing_constant_images_and_decoding_gives_them_back() -> None:
    images = torch.arange(8.0)[:, None, None, None].expand(8, 3, 4, 4)
    assert torch.equal(decode(compose(images, 2), 2), images)


def test_composing_takes_every_second_pixel() -> None:
    image = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert compose(image.expand(4, 1, 4, 4), 2)[0, 0, :2, :2].tolist() == [[0.0, 2.0], [8.0, 10.0]]


def test_the_gradient_of_decoding_is_exact() -> None:
    stored = drawn(2, 1, 4, 4).double().requires_grad_()
    with torch.random.fork_rng():  # it draws directions
        assert torch.autograd.gradcheck(lambda x: decode(x, 2), (stored,))


def test_sides_that_are_no_multiple_are_refused() -> None:
    with pytest.raises(ValueError, match="5x5 pixels cannot be cut into 2 by 2"):
        decode(torch.zeros(1, 1, 5, 5), 2)


def test_an_expanded_set_repeats_the_labels_of_its_tiles_and_a_union_keeps_the_factor() -> None:
    one = SyntheticSet(drawn(2, 1, 4, 4), torch.tensor([0, 1]), None, 2)
    images, labels = union([one, one]).expanded()
    assert len(images) == 16 and labels.tolist() == [0] * 4 + [1] * 4 + [0] * 4 + [1] * 4
    with pytest.raises(ValueError, match="one factor"):
        union([one, SyntheticSet(one.images, one.labels, None)])

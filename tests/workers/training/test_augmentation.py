"""Augmentation agrees with slow per-image references, and gradients pass through it."""

import math
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from workers.training.augmentation import (
    Augmentation,
    Draw,
    brightness,
    contrast,
    crop,
    cutmix,
    cutout,
    draw_cutmix,
    flip,
    rotation,
    saturation,
    scaling,
    square_at,
    warp,
)

FULL = "color_crop_cutout_flip_scale_rotate"


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _images(n: int = 4, channels: int = 3, size: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(n, channels, size, size, generator=_generator(seed), dtype=torch.float64)


def _numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_brightness_shifts() -> None:
    x = _images(2)
    out = brightness(x, _numbers(-0.5, 0.25))
    torch.testing.assert_close(out, torch.stack([x[0] - 0.5, x[1] + 0.25]))


def test_saturation_stretches_each_pixel_about_its_channel_mean() -> None:
    x = _numbers(1, 2, 6).view(1, 3, 1, 1)
    assert saturation(x, _numbers(0.5)).flatten().tolist() == [2, 2.5, 4.5]
    assert saturation(x, _numbers(0.0)).flatten().tolist() == [3, 3, 3]


def test_contrast_stretches_the_image_about_its_mean() -> None:
    x = _numbers(1, 2, 3, 6).view(1, 2, 1, 2)
    assert contrast(x, _numbers(1.5)).flatten().tolist() == [0, 1.5, 3, 7.5]
    assert contrast(x, _numbers(0.5)).flatten().tolist() == [2, 2.5, 3, 4.5]


def test_flip_mirrors_the_images_that_it_is_told_to() -> None:
    x = _images(2)
    out = flip(x, torch.tensor([True, False]))
    assert torch.equal(out[0], x[0, :, :, [7, 6, 5, 4, 3, 2, 1, 0]])
    assert torch.equal(out[1], x[1])


def test_crop_moves_whole_pixels_and_zeros_come_in() -> None:
    side = 24  # an eighth is 3
    x, dx, dy = _images(5, size=side), [0, 1, -2, 3, -3], [0, -1, 2, 0, 3]
    expected = torch.zeros_like(x)
    for i in range(5):
        for row in range(side):
            for column in range(side):
                if 0 <= row + dy[i] < side and 0 <= column + dx[i] < side:
                    expected[i, :, row, column] = x[i, :, row + dy[i], column + dx[i]]
    assert torch.equal(crop(x, torch.tensor(dx), torch.tensor(dy)), expected)


@pytest.mark.parametrize("size", [8, 7])
def test_cutout_zeroes_a_square_of_half_the_side_clipped_at_the_border(size: int) -> None:
    side = 4  # int(8 * 0.5 + 0.5) and int(7 * 0.5 + 0.5)
    x, cx, cy = _images(4, size=size), [0, 3, 5, size], [4, 2, 0, size]
    expected = x.clone()
    for i in range(4):
        top, left = cy[i] - side // 2, cx[i] - side // 2
        expected[i, :, max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)] = 0
    assert torch.equal(cutout(x, *square_at(torch.tensor(cx), torch.tensor(cy), (size, size))), expected)


def test_a_square_has_the_rows_of_its_height_and_the_columns_of_its_width() -> None:
    rows, columns = square_at(torch.tensor([0]), torch.tensor([8]), (8, 6))
    assert rows.int().tolist() == [[0] * 6 + [1] * 2] and columns.int().tolist() == [[1, 1, 0, 0, 0, 0]]


def _bilinear(image: Tensor, row: float, column: float) -> Tensor:
    """Value [C] of image [C, H, W] between pixels; outside is zero."""
    out = torch.zeros(image.shape[0], dtype=image.dtype)
    for r in (math.floor(row), math.floor(row) + 1):
        for c in (math.floor(column), math.floor(column) + 1):
            if 0 <= r < image.shape[1] and 0 <= c < image.shape[2]:
                out += (1 - abs(row - r)) * (1 - abs(column - c)) * image[:, r, c]
    return out


def _warped(x: Tensor, source: Callable[[int, float, float], tuple[float, float]], aligned: bool) -> Tensor:
    """Pull every pixel from `source(image, p, q)`, in units in which the image spans -1 to 1."""
    out, size = torch.zeros_like(x), x.shape[2]
    half = (size - 1) / 2 if aligned else size / 2
    for i in range(len(x)):
        for row in range(size):
            for column in range(size):
                p, q = source(i, (column - (size - 1) / 2) / half, (row - (size - 1) / 2) / half)
                out[i, :, row, column] = _bilinear(x[i], q * half + (size - 1) / 2, p * half + (size - 1) / 2)
    return out


@pytest.mark.parametrize("aligned", [True, False])
def test_scale_samples_bilinearly_about_the_centre(aligned: bool) -> None:
    x, sx, sy = _images(3, size=6), [1.2, 0.9, 1.0], [0.85, 1.1, 1.0]
    expected = _warped(x, lambda i, p, q: (sx[i] * p, sy[i] * q), aligned)
    out = warp(x, scaling(_numbers(*sx), _numbers(*sy)), align_corners=aligned)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(out[2], x[2])


@pytest.mark.parametrize("aligned", [True, False])
def test_rotate_samples_bilinearly_about_the_centre(aligned: bool) -> None:
    x, angles = _images(3, size=6), [0.2, -0.15, 0.0]

    def source(i: int, p: float, q: float) -> tuple[float, float]:
        cos, sin = math.cos(angles[i]), math.sin(angles[i])
        return p * cos - q * sin, p * sin + q * cos

    out = warp(x, rotation(_numbers(*angles)), align_corners=aligned)
    torch.testing.assert_close(out, _warped(x, source, aligned))


def test_a_quarter_turn_is_the_librarys_quarter_turn() -> None:
    x = _images(1)
    out = warp(x, rotation(_numbers(math.pi / 2)), align_corners=True)
    torch.testing.assert_close(out, x.rot90(1, (2, 3)))


SCALED, TURNED = scaling(_numbers(0.9, 1.2), _numbers(1.1, 0.85)), rotation(_numbers(0.2, -0.1))
OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "brightness": lambda x: brightness(x, _numbers(0.2, 0.9)),
    "saturation": lambda x: saturation(x, _numbers(0.2, 0.9)),
    "contrast": lambda x: contrast(x, _numbers(0.2, 0.9)),
    "crop": lambda x: crop(x, torch.tensor([1, -1]), torch.tensor([0, 1])),
    "cutout": lambda x: cutout(x, *square_at(torch.tensor([1, 3]), torch.tensor([0, 2]), (4, 4))),
    "flip": lambda x: flip(x, torch.tensor([True, False])),
    "scale, corners aligned": lambda x: warp(x, SCALED, align_corners=True),
    "scale": lambda x: warp(x, SCALED, align_corners=False),
    "rotate, corners aligned": lambda x: warp(x, TURNED, align_corners=True),
    "rotate": lambda x: warp(x, TURNED, align_corners=False),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_gradients_pass_through_every_operation_to_second_order(name: str) -> None:
    x = _images(2, channels=2, size=4).requires_grad_()
    with torch.random.fork_rng():  # the checks draw from the global generator
        assert torch.autograd.gradcheck(OPERATIONS[name], (x,))
        assert torch.autograd.gradgradcheck(lambda x: OPERATIONS[name](x).square(), (x,))


@pytest.mark.parametrize("name", ["color", "crop", "cutout", "flip", "scale", "rotate"])
def test_a_shared_row_means_the_same_row_for_every_image(name: str) -> None:
    augmentation, x = Augmentation.parse(name), _images()
    shared = augmentation.draw(1, (8, 8), _generator(1), siamese=True)
    repeated = Draw({name: tuple(number.expand(4, *number.shape[1:]) for number in shared.numbers[name])})
    torch.testing.assert_close(augmentation.apply(x, shared), augmentation.apply(x, repeated))


@pytest.mark.parametrize("mode", ["one", "idc"])
def test_one_siamese_draw_serves_batches_of_any_size(mode: str) -> None:
    augmentation = Augmentation.parse(FULL, mode=mode)  # type: ignore[arg-type]
    real = _images(5)
    draw = augmentation.draw(5, (8, 8), _generator(1), siamese=True)
    synthetic = augmentation.apply(real[:2], draw)
    torch.testing.assert_close(augmentation.apply(real, draw)[:2], synthetic)


def test_a_draw_for_another_number_of_images_is_refused() -> None:
    augmentation = Augmentation.parse("flip")
    draw = augmentation.draw(3, (8, 8), _generator(), siamese=False)
    with pytest.raises(ValueError, match="3 rows for 4 images"):
        augmentation.apply(_images(4), draw)


def test_calling_is_drawing_and_applying_with_the_same_generator() -> None:
    augmentation, x = Augmentation.parse(FULL, align_corners=True), _images()
    for seed in range(12):
        draw = augmentation.draw(4, (8, 8), _generator(seed), siamese=False)
        assert torch.equal(augmentation(x, _generator(seed)), augmentation.apply(x, draw))


def test_mode_one_draws_each_name_equally_often_and_one_at_a_time() -> None:
    augmentation, generator = Augmentation.parse(FULL), _generator()
    seen = Counter(augmentation.draw(2, (8, 8), generator, siamese=False).names for _ in range(3000))
    assert set(seen) == {(name,) for name in augmentation.strategy}
    assert all(abs(count - 500) < 4 * math.sqrt(500 * 5 / 6) for count in seen.values())


def test_mode_idc_flips_colors_takes_one_geometric_operation_and_cuts_out_last() -> None:
    augmentation, generator = Augmentation.parse(FULL, mode="idc"), _generator()
    seen = {augmentation.draw(2, (8, 8), generator, siamese=False).names for _ in range(100)}
    assert seen == {("flip", "color", geometric, "cutout") for geometric in ("crop", "scale", "rotate")}


def test_mode_idc_leaves_out_what_is_not_listed() -> None:
    draw = Augmentation.parse("color_crop", mode="idc").draw(2, (8, 8), _generator(), siamese=False)
    assert draw.names == ("color", "crop")


@pytest.mark.parametrize(("size", "shift"), [(32, 4), (28, 4), (64, 8), (8, 1)])
def test_crop_shifts_reach_an_eighth_of_the_side_rounded(size: int, shift: int) -> None:
    draw = Augmentation.parse("crop").draw(5000, (size, size), _generator(), siamese=False)
    for moves in draw.numbers["crop"]:
        assert (int(moves.min()), int(moves.max())) == (-shift, shift)


@pytest.mark.parametrize(("size", "square", "places"), [(32, 16, 33), (29, 15, 29)])
def test_cutout_centres_cover_the_image(size: int, square: int, places: int) -> None:
    """Rows and columns begin at every place from half a square before the border to half a square behind it."""
    draw = Augmentation.parse("cutout").draw(5000, (size, size), _generator(), siamese=False)
    for lines in draw.numbers["cutout"]:
        inside = lines.int()
        assert (int(inside.sum(1).min()), int(inside.sum(1).max())) == ((square + 1) // 2, square)
        assert len(inside.unique(dim=0)) == places
        assert bool((inside.diff(dim=1).abs().sum(1) <= 2).all())  # neighbours


def test_color_and_flip_have_the_numbers_of_the_published_code() -> None:
    shift, saturated, contrasted = (
        Augmentation.parse("color").draw(9000, (8, 8), _generator(), siamese=False).numbers["color"]
    )
    for numbers, low, high in ((shift, -0.5, 0.5), (saturated, 0.0, 2.0), (contrasted, 0.5, 1.5)):
        assert numbers.min().item() == pytest.approx(low, abs=1e-3) and numbers.min() >= low
        assert numbers.max().item() == pytest.approx(high, abs=1e-3) and numbers.max() <= high
    (mirrored,) = Augmentation.parse("flip").draw(9000, (8, 8), _generator(), siamese=False).numbers["flip"]
    assert abs(int(mirrored.sum()) - 4500) < 4 * math.sqrt(9000 / 4)


def test_scale_and_rotate_stay_in_their_ranges_and_fill_them() -> None:
    (scaled,) = Augmentation.parse("scale").draw(9000, (8, 8), _generator(), siamese=False).numbers["scale"]
    (turned,) = Augmentation.parse("rotate").draw(9000, (8, 8), _generator(), siamese=False).numbers["rotate"]
    angle = torch.atan2(turned[:, 1, 0], turned[:, 0, 0])
    for numbers, low, high in (
        (scaled[:, 0, 0], 1 / 1.2, 1.2),
        (scaled[:, 1, 1], 1 / 1.2, 1.2),
        (angle, -0.2618, 0.2618),
    ):
        assert numbers.min().item() == pytest.approx(low, abs=1e-3) and numbers.min() >= low - 1e-4
        assert numbers.max().item() == pytest.approx(high, abs=1e-3) and numbers.max() <= high + 1e-4
    assert not torch.equal(scaled[:, 0, 0], scaled[:, 1, 1])


def test_no_strategy_is_the_identity_and_draws_nothing() -> None:
    generator, x = _generator(), _images()
    before = generator.get_state()
    assert Augmentation.parse("none")(x, generator) is x
    assert torch.equal(generator.get_state(), before)


def test_the_global_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    Augmentation.parse(FULL, mode="idc")(_images(), _generator())
    draw_cutmix(4, (8, 8), 1.0, _generator())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("strategy", ["", "colour", "flip_flip", "color_none"])
def test_a_strategy_that_cannot_be_read_is_answered_with_the_list(strategy: str) -> None:
    with pytest.raises(ValueError, match="color, crop, cutout, flip, scale, rotate"):
        Augmentation.parse(strategy)


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="'both'"):
        Augmentation.parse("flip", mode="both")  # type: ignore[arg-type]


def test_float32_images_stay_float32() -> None:
    for seed in range(12):
        assert Augmentation.parse(FULL)(_images().float(), _generator(seed)).dtype == torch.float32


def _hand_box(seed: int, height: int, width: int) -> tuple[int, int, int, int]:
    """The numbers of `draw_cutmix` drawn again, and the box they mean."""
    generator = _generator(seed)
    torch.rand((), generator=generator)
    ratio = math.sqrt(1 - torch.rand((), generator=generator).item())
    row, column = (int(torch.randint(side, (), generator=generator)) for side in (height, width))
    tall, wide = int(height * ratio) // 2, int(width * ratio) // 2
    return max(row - tall, 0), min(row + tall, height), max(column - wide, 0), min(column + wide, width)


@pytest.mark.parametrize("seed", range(8))
def test_cutmix_pastes_the_partners_pixels_in_one_box_and_weighs_by_its_true_area(seed: int) -> None:
    n, labels = 5, torch.arange(10, 15)
    images = torch.arange(float(n)).view(n, 1, 1, 1).expand(n, 2, 8, 6)
    mix = draw_cutmix(n, (8, 6), 1.0, _generator(seed))
    assert mix is not None
    mixed, partners, weight = cutmix(images, labels, mix)
    top, bottom, left, right = _hand_box(seed, 8, 6)
    expected = images.clone()
    expected[:, :, top:bottom, left:right] = (partners - 10.0).view(n, 1, 1, 1)
    assert torch.equal(mixed, expected)
    assert weight == pytest.approx(1 - (bottom - top) * (right - left) / 48)
    assert sorted(partners.tolist()) == labels.tolist()


def test_cutmix_happens_as_often_as_asked() -> None:
    generator = _generator()
    untouched = sum(draw_cutmix(4, (8, 8), 0.5, generator) is None for _ in range(1000))
    assert abs(untouched - 500) < 64  # four standard deviations
    assert draw_cutmix(4, (8, 8), 0.0, generator) is None


def test_cutmix_does_not_write_into_its_input() -> None:
    images = _images(4)
    kept = images.clone()
    for seed in range(5):
        mix = draw_cutmix(4, (images.shape[2], images.shape[3]), 1.0, _generator(seed))
        assert mix is not None
        cutmix(images, torch.arange(4), mix)
    assert torch.equal(images, kept)

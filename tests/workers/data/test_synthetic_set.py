"""A synthetic set on disk: exact for us, pictures for everybody else."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from workers.data.preprocess import Affine, fit_zca
from workers.data.sources import Source, inspect
from workers.data.synthetic_set import EXACT, PICTURES, SyntheticSet, read, to_uint8, union, write

IDENTITY = Affine(torch.zeros(1), torch.ones(1))
NAMES = ["zero", "one", "zwei, drei"]


def made(n: int = 6, channels: int = 1, step_size: float | None = 0.1) -> SyntheticSet:
    images = torch.randn(n, channels, 4, 5, generator=torch.Generator().manual_seed(n))
    return SyntheticSet(images, torch.arange(n) % 3, step_size)


def pictures(folder: Path) -> list[NDArray[np.uint8]]:
    cells = pq.read_table(folder / PICTURES).column("image").to_pylist()
    return [np.asarray(Image.open(io.BytesIO(cell["bytes"]))) for cell in cells]


@pytest.mark.parametrize("step_size", [0.1, math.nextafter(0.01, 1), 5e-324, 1 / 3, None])
def test_images_labels_and_step_size_come_back_bit_for_bit(tmp_path: Path, step_size: float | None) -> None:
    one = made(channels=3, step_size=step_size)
    one.images[0, 0, 0, :4] = torch.tensor([-0.0, math.inf, 1e-42, torch.finfo(torch.float32).max])
    write(tmp_path, one, Affine(torch.zeros(3), torch.ones(3)), NAMES)
    for place in (tmp_path, tmp_path / EXACT):
        back = read(place)
        assert back.images.dtype == torch.float32 and back.images.shape == (6, 3, 4, 5)
        assert back.images.numpy().tobytes() == one.images.numpy().tobytes()
        assert torch.equal(back.labels, one.labels) and back.labels.dtype == torch.int64
        assert back.step_size == step_size


def test_what_is_read_can_be_written_to_without_reaching_the_file(tmp_path: Path) -> None:
    write(tmp_path, made(), IDENTITY, NAMES)
    before = (tmp_path / EXACT).read_bytes()
    back = read(tmp_path)
    back.images.zero_()
    back.labels.zero_()
    assert (tmp_path / EXACT).read_bytes() == before


def test_the_same_set_is_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write(tmp_path / name, made(), IDENTITY, NAMES)
    for file in (EXACT, PICTURES):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_images_in_another_memory_order_are_stored_as_they_look(tmp_path: Path) -> None:
    one = made(channels=3)
    last = SyntheticSet(one.images.to(memory_format=torch.channels_last), one.labels, one.step_size)
    write(tmp_path, last, Affine(torch.zeros(3), torch.ones(3)), NAMES)
    assert torch.equal(read(tmp_path).images, one.images)


def test_a_union_puts_earlier_images_first_and_takes_the_last_step_size() -> None:
    first, second = made(3, step_size=0.1), made(6, step_size=0.2)
    both = union([first, second])
    assert torch.equal(both.images, torch.cat([first.images, second.images]))
    assert both.labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2]
    assert (both.step_size, len(both)) == (0.2, 9)
    assert union([second, first]).step_size == 0.1
    assert union([first, made(6, step_size=None)]).step_size is None


def test_a_union_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one set"):
        union([])


def test_pixels_are_clamped_and_rounded_to_levels() -> None:
    values = [-3.0, 0.0, 0.4 / 255, 0.6 / 255, 0.5, 254.6 / 255, 1.0, 2.0]
    levels = to_uint8(torch.tensor(values).view(1, 1, 2, 4))
    assert levels.dtype == np.uint8 and levels.shape == (1, 2, 4)
    assert levels.ravel().tolist() == [0, 0, 0, 1, 128, 255, 255, 255]  # 127.5 rounds to even
    colour = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    shown = to_uint8(colour)
    assert shown.shape == (2, 4, 5, 3)
    assert shown[1, 2, 3].tolist() == (colour[1, :, 2, 3] * 255).round().int().tolist()


def by_hand(pixels: Tensor) -> NDArray[np.uint8]:
    clamped = np.clip(pixels.double().numpy(), 0, 1)
    levels: NDArray[np.uint8] = np.rint(clamped * 255).astype(np.uint8)
    return np.moveaxis(levels, 1, -1).squeeze()


def test_the_pictures_are_the_clamped_images_with_the_normalisation_undone(tmp_path: Path) -> None:
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.25])
    one = made(channels=3)
    write(tmp_path, one, Affine(mean, std), NAMES)
    pixels = one.images * std.view(3, 1, 1) + mean.view(3, 1, 1)
    assert bool((pixels < 0).any()) and bool((pixels > 1).any())
    found, expected = np.stack(pictures(tmp_path)), by_hand(pixels)
    assert np.abs(found.astype(int) - expected).max() <= 1  # a rounding of float32 may fall on either side
    assert (found != expected).mean() < 0.01
    assert {0, 255} <= set(found.ravel().tolist())


def test_the_whitening_is_undone_in_the_pictures_but_not_in_the_exact_form(tmp_path: Path) -> None:
    seen = torch.randint(0, 256, (60, 1, 4, 5), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    zca = fit_zca(seen)
    whitened = zca.forward(seen[:6])
    write(tmp_path, SyntheticSet(whitened, torch.arange(6) % 3, 0.1), zca, NAMES)
    assert np.array_equal(np.stack(pictures(tmp_path)), seen[:6, 0].numpy())
    assert torch.equal(read(tmp_path).images, whitened)
    assert not np.array_equal(to_uint8(whitened), seen[:6, 0].numpy())


def test_the_parquet_file_declares_images_and_class_names_as_hugging_face_does(tmp_path: Path) -> None:
    write(tmp_path, made(), IDENTITY, NAMES)
    table = pq.read_table(tmp_path / PICTURES)
    assert table.column_names == ["image", "label"]
    assert table.column("label").to_pylist() == [0, 1, 2, 0, 1, 2]
    assert [cell["path"] for cell in table.column("image").to_pylist()] == [None] * 6
    assert json.loads(table.schema.metadata[b"huggingface"]) == {
        "info": {
            "features": {
                "image": {"_type": "Image"},
                "label": {"names": NAMES, "_type": "ClassLabel"},
            }
        }
    }


def test_our_own_reader_takes_the_parquet_file_for_a_dataset(tmp_path: Path) -> None:
    write(tmp_path, made(), IDENTITY, NAMES)
    for split in ("train", "test"):
        (tmp_path / f"{split}.parquet").write_bytes((tmp_path / PICTURES).read_bytes())
    (tmp_path / PICTURES).unlink()
    facts = inspect(Source(layout="parquet", place="test", path=tmp_path))
    assert facts.class_names == tuple(NAMES)
    assert (facts.channels, facts.height, facts.width, facts.train_per_class) == (1, 4, 5, (2, 2, 2))


# Soft labels.


def soft(n: int = 6, temperature: float = 2.0, factor: int = 1) -> SyntheticSet:
    logits = torch.randn(n, 3, generator=torch.Generator().manual_seed(n + 1))
    return replace(made(n, channels=1), logits=logits, temperature=temperature, factor=factor)


def test_soft_labels_and_their_temperature_come_back_bit_for_bit(tmp_path: Path) -> None:
    one = soft(temperature=1 / 3)
    write(tmp_path, one, IDENTITY, NAMES)
    back = read(tmp_path)
    assert back.logits is not None and one.logits is not None and back.logits.dtype == torch.float32
    assert back.logits.numpy().tobytes() == one.logits.numpy().tobytes() and back.temperature == 1 / 3
    assert torch.equal(back.labels, one.labels) and torch.equal(back.images, one.images)


def test_a_set_with_hard_labels_is_stored_as_it_was_before_there_were_soft_ones(tmp_path: Path) -> None:
    write(tmp_path, made(), IDENTITY, NAMES)
    with pa.memory_map(str(tmp_path / EXACT)) as source:
        schema = pa.ipc.open_file(source).schema
    assert schema.names == ["pixels", "label"] and set(schema.metadata) == {b"shape", b"step_size"}
    assert pq.read_schema(tmp_path / PICTURES).names == ["image", "label"]
    assert read(tmp_path).logits is None


def test_networks_are_trained_towards_the_probabilities_at_the_sets_temperature_or_another() -> None:
    one = soft(factor=2)
    one = replace(one, images=one.images[..., :4])
    assert one.logits is not None
    images, targets = one.training_data()
    assert len(images) == len(targets) == 24
    by_hand = np.exp(one.logits.double().numpy() / 2)
    by_hand /= by_hand.sum(1, keepdims=True)
    np.testing.assert_allclose(targets.numpy(), by_hand.repeat(4, axis=0), rtol=1e-5)
    sharp = one.training_data(0.01)[1]
    assert torch.equal(sharp.argmax(1), targets.argmax(1)) and bool((sharp.max(1).values > 0.8).all())
    assert torch.equal(made().training_data(0.01)[1], made().labels)


def test_a_union_keeps_the_soft_labels_of_each_set_and_refuses_to_mix_them() -> None:
    first, second = soft(3), soft(6)
    both = union([first, second])
    assert both.logits is not None and first.logits is not None and second.logits is not None
    assert torch.equal(both.logits, torch.cat([first.logits, second.logits])) and both.temperature == 2.0
    for other in (made(6), soft(6, temperature=1.0)):
        with pytest.raises(ValueError, match="all have soft labels of one temperature"):
            union([first, other])


def test_the_parquet_file_shows_soft_labels_as_probabilities_of_a_declared_length(tmp_path: Path) -> None:
    one = soft()
    write(tmp_path, one, IDENTITY, NAMES)
    table = pq.read_table(tmp_path / PICTURES)
    assert table.column_names == ["image", "label", "soft_label"]
    shown = torch.tensor(table.column("soft_label").to_pylist())
    assert torch.equal(shown, torch.softmax(one.logits / 2.0, 1)) if one.logits is not None else False
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert features["soft_label"] == {
        "feature": {"dtype": "float32", "_type": "Value"},
        "length": 3,
        "_type": "Sequence",
    }

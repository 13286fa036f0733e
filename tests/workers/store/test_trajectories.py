"""Trajectories on disk: the rows that were written, whichever expert_batch holds them, and never a view."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from workers.store.trajectories import CORRECTNESS, TRAJECTORIES, Trajectories, read_correctness, write

EPOCHS, SIZE = 3, 17


def expert_batch(folder: Path, count: int, seed: int, images: int = 13) -> tuple[Path, list[NDArray[np.float32]]]:
    rng = np.random.default_rng(seed)
    rows = [rng.standard_normal((EPOCHS + 1, SIZE)).astype(np.float32) for _ in range(count)]
    folder.mkdir()
    write(folder, rows, [rng.random((EPOCHS, images)) < 0.5 for _ in range(count)])
    return folder / TRAJECTORIES, rows


def test_every_row_of_several_cohorts_comes_back_bit_for_bit_in_order(tmp_path: Path) -> None:
    paths, rows = [], []
    for seed, count in enumerate((2, 1, 3)):
        path, made = expert_batch(tmp_path / str(seed), count, seed)
        paths.append(path)
        rows += made
    stored = Trajectories(paths)
    assert (len(stored), stored.epochs) == (6, EPOCHS)
    for expert, block in enumerate(rows):
        for epoch in range(EPOCHS + 1):
            parameters = stored.parameters(expert, epoch)
            assert parameters.dtype == torch.float32
            assert parameters.numpy().tobytes() == block[epoch].tobytes()


@pytest.mark.parametrize(("expert", "epoch"), [(3, 0), (-1, 0), (0, EPOCHS + 1), (0, -1)])
def test_an_expert_or_epoch_that_is_not_there_is_an_index_error(tmp_path: Path, expert: int, epoch: int) -> None:
    paths = [expert_batch(tmp_path / str(count), count, count)[0] for count in (1, 2)]
    with pytest.raises(IndexError, match=r"have 3 experts and epochs 0\.\.3"):
        Trajectories(paths).parameters(expert, epoch)


def test_what_is_read_is_a_copy_and_can_be_written_to(tmp_path: Path) -> None:
    path, rows = expert_batch(tmp_path / "one", 1, 0)
    stored, before = Trajectories([path]), path.read_bytes()
    stored.parameters(0, 2).zero_()
    assert np.array_equal(stored.parameters(0, 2).numpy(), rows[0][2])
    assert path.read_bytes() == before


def test_what_was_read_outlives_the_file(tmp_path: Path) -> None:
    path, rows = expert_batch(tmp_path / "one", 1, 0)
    stored = Trajectories([path])
    kept = stored.parameters(0, 1)
    del stored
    path.unlink()
    assert np.array_equal(kept.numpy(), rows[0][1])


@pytest.mark.parametrize("images", [1, 7, 8, 13, 64, 65])
@pytest.mark.parametrize("epochs", [1, 3])
def test_correctness_comes_back_expert_by_expert_for_any_number_of_images(
    tmp_path: Path, images: int, epochs: int
) -> None:
    rng = np.random.default_rng(images)
    streams = [rng.random((epochs, images)) < 0.5 for _ in range(3)]
    write(tmp_path, [np.zeros((epochs + 1, 2), np.float32)] * 3, streams)
    read = read_correctness(tmp_path / CORRECTNESS)
    assert len(read) == 3
    for stored, stream in zip(read, streams, strict=True):
        assert stored.dtype == np.bool_ and np.array_equal(stored, stream)


def test_a_correctness_stream_takes_a_bit_an_image(tmp_path: Path) -> None:
    stream = np.ones((10, 80_000), bool)
    write(tmp_path, [np.zeros((11, 2), np.float32)], [stream])
    assert (tmp_path / CORRECTNESS).stat().st_size < 1.01 * stream.size / 8


def test_the_same_trajectories_are_the_same_bytes(tmp_path: Path) -> None:
    first, second = (expert_batch(tmp_path / name, 2, 5)[0] for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()
    assert (tmp_path / "a" / CORRECTNESS).read_bytes() == (tmp_path / "b" / CORRECTNESS).read_bytes()

"""Files of the published code: read without running what is in them, checked, and written as that code writes them."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from jobs.errors import BadInput
from workers.data import published

SHAPES = ((4, 1, 3, 3), (4,), (10, 16), (10,))


def trajectory(epochs: int = 2, shapes: tuple[tuple[int, ...], ...] = SHAPES, seed: int = 0) -> list[list[Tensor]]:
    """A trajectory as the published code has it in memory."""
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(shape, generator=generator) for shape in shapes] for _ in range(epochs + 1)]


def random(*shape: int) -> Tensor:
    """Numbers around 0."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def saved(path: Path, content: object, **how: Any) -> Path:
    torch.save(content, path, **how)
    return path


def images_and_labels(folder: Path, images: Tensor, labels: object) -> list[Path]:
    return [saved(folder / "images_best.pt", images), saved(folder / "labels_best.pt", labels)]


class Hostile:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.trace}",)


def test_buffers_are_found_and_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    paths = [saved(tmp_path / f"replay_buffer_{n}.pt", [trajectory(seed=n), trajectory(seed=n + 50)]) for n in (10, 2)]
    spec = published.inspect(paths)
    assert (spec.what, spec.count, spec.epochs, spec.shapes) == ("experts", 4, 2, SHAPES)
    assert [Path(file).name for file in spec.files] == ["replay_buffer_2.pt", "replay_buffer_10.pt"]
    snapshots = list(published.open_experts([Path(file) for file in spec.files]).snapshots())
    for got, seed in zip(snapshots, (2, 52, 10, 60), strict=True):
        wanted = [torch.cat([tensor.ravel() for tensor in epoch]) for epoch in trajectory(seed=seed)]
        np.testing.assert_array_equal(got, torch.stack(wanted).numpy())


def test_the_key_is_that_of_the_content_wherever_it_lies(tmp_path: Path) -> None:
    from jobs.graph import Job

    (tmp_path / "elsewhere").mkdir()
    keys = []
    for folder, seed in ((tmp_path, 0), (tmp_path / "elsewhere", 0), (tmp_path, 1)):
        path = saved(folder / f"replay_buffer_{seed}.pt", [trajectory(seed=seed)])
        if seed == 0:
            path = path.rename(folder / "replay_buffer_0.pt")
        keys.append(Job.make(published.inspect([path]), {}).key)
    assert keys[0] == keys[1] != keys[2]


def test_files_of_old_torch_and_parameters_are_read(tmp_path: Path) -> None:
    content = [[[torch.nn.Parameter(tensor) for tensor in epoch] for epoch in trajectory()]]
    path = saved(tmp_path / "replay_buffer_0.pt", content, _use_new_zipfile_serialization=False)
    (snapshots,) = published.open_experts([path]).snapshots()
    assert snapshots.shape == (3, sum(int(np.prod(shape)) for shape in SHAPES))


def own_megabytes() -> int:
    """Memory of this process that no file backs."""
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("RssAnon")).split()[1]) // 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is looked up in /proc")
def test_a_buffer_is_read_a_trajectory_at_a_time(tmp_path: Path) -> None:
    """Of 320 MB in the file no more than a trajectory of 16 MB, and what it is made of, is in memory."""
    path = saved(tmp_path / "replay_buffer_0.pt", [trajectory(3, ((1000, 1000),), seed) for seed in range(20)])
    before = own_megabytes()
    most = max(own_megabytes() for _ in published.open_experts([path]).snapshots())
    assert most - before < 100


@pytest.mark.parametrize("plain", [False, True], ids=["torch.save", "pickle"])
@pytest.mark.parametrize("name", ["replay_buffer_0.pt", "images_best.pt", "labels_best.pt"])
def test_a_hostile_pickle_is_refused_and_not_run(tmp_path: Path, name: str, plain: bool) -> None:
    trace = tmp_path / "trace"
    paths = [tmp_path / name]
    if "best" in name:
        paths = images_and_labels(tmp_path, random(2, 1, 4, 4), torch.arange(2))
    if plain:
        (tmp_path / name).write_bytes(pickle.dumps([Hostile(trace)], protocol=2))
    else:
        saved(tmp_path / name, [Hostile(trace)])
    with pytest.raises(BadInput) as refused:
        published.inspect(paths)
    assert not trace.exists()
    assert refused.value.place == str(tmp_path / name)
    assert (refused.value.field, refused.value.value) == ("pickle", f"{os.system.__module__}.system")
    assert "names code to be run" in refused.value.fix
    assert "weights_only" not in str(refused.value)  # torch's own message tells how to open it all the same


@pytest.mark.parametrize("content", [b"", b"no pickle", b"PK\x03\x04 no archive", pickle.dumps([1], protocol=5)])
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "replay_buffer_0.pt"
    path.write_bytes(content)
    with pytest.raises(BadInput, match="fetch it again"):
        published.inspect([path])


@pytest.mark.parametrize("cut", [0.2, 0.5, 0.99])
def test_a_file_that_was_cut_off_is_refused(tmp_path: Path, cut: float) -> None:
    path = saved(tmp_path / "replay_buffer_0.pt", [trajectory()])
    path.write_bytes(path.read_bytes()[: int(cut * path.stat().st_size)])
    with pytest.raises(BadInput, match="fetch it again"):
        published.inspect([path])


def diverged() -> list[list[Tensor]]:
    epochs = trajectory()
    epochs[1][0][0] = torch.nan
    return epochs


@pytest.mark.parametrize(
    ("content", "field", "fix"),
    [
        ([], "content", "must be a list that is not empty"),
        ({"images": 1}, "content", "must be a list"),
        ([trajectory(0)], "trajectory 0", "must have the start and one epoch or more"),
        ([trajectory(), trajectory(3)], "trajectory 1", "all trajectories must have 3 snapshots"),
        ([trajectory(), trajectory(2, SHAPES[:2])], "trajectory 1, epoch 0, shapes", "all must be of one network"),
        ([trajectory(), diverged()], "trajectory 1", "its training diverged"),
        ([[trajectory()[0]] * 3], "trajectory 0", "saved from a CPU without a copy"),
        ([[[1, 2], [3, 4]]], "trajectory 0, epoch 0", "must be a dense tensor of floats"),
        (
            [[[torch.zeros(1).expand(10**9)], [torch.zeros(1).expand(10**9)]]],
            "trajectory 0, epoch 0",
            "claims more numbers than its file has",
        ),
    ],
)
def test_what_is_no_trajectory_is_refused(tmp_path: Path, content: object, field: str, fix: str) -> None:
    path = saved(tmp_path / "replay_buffer_0.pt", content)
    with pytest.raises(BadInput) as refused:
        published.inspect([path])
        list(published.open_experts([path]).snapshots())
    assert (refused.value.place, refused.value.field) == (str(path), field)
    assert fix in refused.value.fix


def test_a_set_is_read_class_by_class(tmp_path: Path) -> None:
    images = random(6, 3, 8, 8)
    labels = torch.tensor([2, 0, 1, 1, 0, 2])
    paths = images_and_labels(tmp_path, images, labels)
    spec = published.inspect(paths, step_size=0.02, normalise="zca")
    assert (spec.what, spec.count, spec.classes, spec.shapes) == ("set", 6, 3, ((3, 8, 8),))
    assert (spec.step_size, spec.normalise) == (0.02, "zca")
    found = published.open_set(paths)
    assert found.labels.tolist() == [0, 0, 1, 1, 2, 2]
    torch.testing.assert_close(found.images, images[[1, 4, 2, 3, 0, 5]], rtol=0, atol=0)


def test_soft_labels_are_logits_whose_largest_names_the_class(tmp_path: Path) -> None:
    logits = torch.tensor([[0.1, 2.0], [3.0, 0.5], [-1.0, 0.0], [4.0, 3.9]])
    paths = images_and_labels(tmp_path, random(4, 1, 8, 8), logits)
    assert published.inspect(paths).soft_labels
    found = published.open_set(paths)
    assert found.labels.tolist() == [0, 0, 1, 1]
    assert found.logits is not None
    torch.testing.assert_close(found.logits, logits[[1, 3, 0, 2]], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("images", "labels", "field", "fix"),
    [
        (random(4, 8, 8), torch.arange(4), "images", "must be [n, channels, height, width]"),
        (random(4, 1, 8, 8) * torch.inf, torch.arange(4), "images", "its distillation diverged"),
        (torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.arange(4), "images", "must be a dense tensor of floats"),
        (random(4, 1, 8, 8), torch.arange(3), "labels", "one whole number for each of the 4 images"),
        (random(4, 1, 8, 8), random(3, 10), "labels", "one row for each image"),
        (random(4, 1, 8, 8), random(4, 10) * torch.inf, "labels", "must be finite logits"),
        (random(4, 1, 8, 8), random(4), "labels", "or logits [4, classes]"),
        (random(4, 1, 8, 8), [0, 1, 2, 3], "labels", "one whole number"),
        (random(4, 1, 8, 8), torch.tensor([0, 0, 0, 1]), "labels", "as many images each"),
        (random(4, 1, 8, 8), torch.tensor([0, 0, 2, 2]), "labels", "without a gap"),
        (random(4, 1, 8, 8), torch.tensor([-1, 0, 1, 2]), "labels", "classes from 0"),
    ],
)
def test_what_is_no_set_is_refused(tmp_path: Path, images: Tensor, labels: object, field: str, fix: str) -> None:
    paths = images_and_labels(tmp_path, images, labels)
    with pytest.raises(BadInput) as refused:
        published.inspect(paths)
    assert refused.value.field == field
    assert refused.value.place == str(paths[0 if field == "images" else 1])
    assert fix in refused.value.fix


def test_a_set_is_two_files_and_experts_have_no_step_size(tmp_path: Path) -> None:
    paths = images_and_labels(tmp_path, random(2, 1, 4, 4), torch.arange(2))
    with pytest.raises(BadInput, match="a set is two files"):
        published.inspect(paths[:1])
    buffer = saved(tmp_path / "replay_buffer_0.pt", [trajectory()])
    with pytest.raises(BadInput, match="trajectories have none"):
        published.inspect([buffer], step_size=0.1)
    with pytest.raises(BadInput, match="must be a number above 0"):
        published.inspect(paths, step_size=-0.1)
    with pytest.raises(BadInput, match="is not there"):
        published.inspect([tmp_path / "absent.pt"])


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    rows = [random(3, sum(int(np.prod(shape)) for shape in SHAPES)) for _ in range(12)]
    files = published.write_experts(tmp_path, iter(rows), SHAPES)
    assert [len(torch.load(path)) for path in files] == [10, 2]
    for row, read in zip(rows, published.open_experts(files).snapshots(), strict=True):
        np.testing.assert_array_equal(row.numpy(), read)
    images, labels = random(4, 1, 8, 8), torch.tensor([0, 0, 1, 1])
    written = published.write_set(tmp_path, images, labels, 0.5)
    assert [path.name for path in written] == ["images_best.pt", "labels_best.pt", "lr_best.pt"]
    torch.testing.assert_close(published.open_set(written[:2]).images, images, rtol=0, atol=0)

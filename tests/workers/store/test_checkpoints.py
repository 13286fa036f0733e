"""`workers.store.checkpoints`: bit for bit, the last two, and a torn one is not believed."""

from __future__ import annotations

import logging
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from workers.store.checkpoints import PART, Checkpoints
from workers.store.store import Store

KEY = "distil-demo-0123456789abcdef"
ROOT = Path(__file__).resolve().parents[3]

ENDLESS_SAVER = """
import itertools, sys
import numpy as np
from workers.store.checkpoints import Checkpoints
checkpoints = Checkpoints(sys.argv[1])
for number in itertools.count(int(sys.argv[3])):
    checkpoints.save(sys.argv[2], {"step": np.full(100_000, number)}, {"step": number})
    print(number, flush=True)
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


@pytest.fixture
def checkpoints(store: Store) -> Checkpoints:
    return Checkpoints(store.root)


def files(store: Store, key: str = KEY) -> list[Path]:
    return sorted((store.root / "checkpoints" / key).iterdir())


def save_steps(checkpoints: Checkpoints, *steps: int) -> None:
    for step in steps:
        checkpoints.save(KEY, {"images": np.full(50, step, dtype=np.float32)}, {"step": step})


def step_found(checkpoints: Checkpoints) -> int | None:
    found = checkpoints.load(KEY)
    return None if found is None else found[1]["step"]


ARRAYS: dict[str, NDArray[Any]] = {
    "images": np.linspace(-3, 3, 60, dtype=np.float32).reshape(2, 3, 2, 5),
    "step_size": np.array(0.1, dtype=np.float32),
    "rng": np.arange(256, dtype=np.uint8),
    "nan payload": np.array([0x7FC00001, 0xFF800000, 0x80000000, 1], dtype=np.uint32).view(np.float32),
    "net/conv.0.weight": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    "strided": np.arange(20)[::3],
    "empty": np.empty((0, 3), dtype=np.int64),
    "flags": np.array([True, False]),
    "half": np.array([1.5, 2.5], dtype=np.float16),
    "file": np.array([1]),
    "allow_pickle": np.array([2]),
    "state": np.array([3]),
    "name.npy": np.array([4]),
}


def test_arrays_and_state_come_back_bit_for_bit(checkpoints: Checkpoints) -> None:
    state = {
        "step": 7,
        "loss": 0.1 + 0.2,
        "history": [1e-310, 1.0],
        "note": "é",
        "last": None,
        "seed": 2**63 - 1,
    }
    checkpoints.save(KEY, ARRAYS, state)
    found = checkpoints.load(KEY)
    assert found is not None and found[1] == state and list(found[0]) == list(ARRAYS)
    for name, array in ARRAYS.items():
        back = found[0][name]
        assert (back.dtype, back.shape) == (array.dtype, array.shape), name
        assert back.tobytes() == array.tobytes(), name


def test_a_generator_resumes_where_it_was_saved(checkpoints: Checkpoints) -> None:
    rng = np.random.Generator(np.random.PCG64(3))
    rng.standard_normal(5)
    checkpoints.save(KEY, {}, {"rng": rng.bit_generator.state})
    expected = rng.standard_normal(5)
    found = checkpoints.load(KEY)
    assert found is not None
    resumed = np.random.Generator(np.random.PCG64(0))
    resumed.bit_generator.state = found[1]["rng"]
    assert (resumed.standard_normal(5) == expected).all()


def test_without_a_checkpoint_there_is_nothing_to_load(checkpoints: Checkpoints) -> None:
    assert checkpoints.load(KEY) is None
    checkpoints.drop(KEY)


def test_the_newest_is_loaded_and_the_last_two_are_kept(checkpoints: Checkpoints, store: Store) -> None:
    save_steps(checkpoints, *range(12))
    assert step_found(checkpoints) == 11
    assert [path.name[:8] for path in files(store)] == ["00000011", "00000012"]


def test_checkpoints_of_what_is_done_are_swept_and_those_of_unfinished_jobs_stay(
    checkpoints: Checkpoints, store: Store
) -> None:
    done, open_ = f"experts-demo-{'0' * 16}", f"experts-demo-{'1' * 16}"
    for key in (done, f"{done}{PART}0", open_, f"{open_}{PART}1"):
        checkpoints.save(key, {}, {})
    checkpoints.sweep(lambda key: key == done)
    assert {path.name for path in (store.root / "checkpoints").iterdir()} == {open_, f"{open_}{PART}1"}


def test_jobs_do_not_see_each_other(checkpoints: Checkpoints, store: Store) -> None:
    save_steps(checkpoints, 1)
    checkpoints.save("distil-other", {}, {"step": 2})
    checkpoints.drop("distil-other")
    assert checkpoints.load("distil-other") is None and step_found(checkpoints) == 1
    assert os.listdir(store.root / "checkpoints") == [KEY]


def test_the_same_state_makes_the_same_bytes(checkpoints: Checkpoints, store: Store) -> None:
    checkpoints.save(KEY, ARRAYS, {"step": 1})
    checkpoints.save(KEY, ARRAYS, {"step": 1})
    one, other = files(store)
    assert one.read_bytes() == other.read_bytes()


def test_checkpoints_are_private_and_leave_nothing_else_behind(checkpoints: Checkpoints, store: Store) -> None:
    save_steps(checkpoints, 1, 2, 3)
    assert {path.stat().st_mode & 0o777 for path in files(store)} == {0o600}
    assert (store.root / "checkpoints" / KEY).stat().st_mode & 0o777 == 0o700
    assert os.listdir(store.root / "tmp") == []


@pytest.mark.parametrize("size", [0, 10, 200, -1])
def test_a_torn_checkpoint_gives_way_to_the_one_before_it(
    checkpoints: Checkpoints, store: Store, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    save_steps(checkpoints, 1, 2)
    newest = files(store)[-1]
    os.truncate(newest, size if size >= 0 else newest.stat().st_size + size)
    with caplog.at_level(logging.WARNING):
        assert step_found(checkpoints) == 1
    assert newest.name in caplog.text
    save_steps(checkpoints, 2)
    assert len(files(store)) == 2 and step_found(checkpoints) == 2


def test_any_flipped_bit_is_noticed(checkpoints: Checkpoints, store: Store) -> None:
    save_steps(checkpoints, 1)
    (path,) = files(store)
    sound = path.read_bytes()
    for position in range(0, len(sound), 29):
        flipped = bytearray(sound)
        flipped[position] ^= 4
        path.write_bytes(flipped)
        assert checkpoints.load(KEY) is None
        assert not path.exists()
    path.write_bytes(sound)
    assert step_found(checkpoints) == 1


def test_a_file_that_cannot_be_read_now_is_not_torn(
    checkpoints: Checkpoints, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_steps(checkpoints, 1)

    def broken(path: Path) -> None:
        raise OSError("Input/output error")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="Input/output"):
        patch.setattr("workers.store.checkpoints.open_plain", broken)
        checkpoints.load(KEY)
    assert step_found(checkpoints) == 1


@pytest.mark.parametrize(
    ("arrays", "state", "error"),
    [
        ({"objects": np.array([{}], dtype=object)}, {}, ValueError),
        ({}, {"step": {1, 2}}, TypeError),
        ({"state.json": np.zeros(1)}, {}, AssertionError),
    ],
)
def test_what_cannot_be_kept_without_pickle_is_refused_and_the_older_one_stands(
    checkpoints: Checkpoints,
    store: Store,
    arrays: dict[str, NDArray[Any]],
    state: dict[str, Any],
    error: type[Exception],
) -> None:
    save_steps(checkpoints, 1)
    with pytest.raises(error):
        checkpoints.save(KEY, arrays, state)
    assert step_found(checkpoints) == 1 and os.listdir(store.root / "tmp") == []


def test_a_full_disk_is_explained_and_the_older_one_stands(
    checkpoints: Checkpoints, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_steps(checkpoints, 1)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space") as caught:
        patch.setattr(os, "fsync", full)
        save_steps(checkpoints, 2)
    assert str(store.root) in caught.value.__notes__[0]
    assert step_found(checkpoints) == 1 and os.listdir(store.root / "tmp") == []


def test_a_saver_killed_at_any_moment_loses_at_most_the_checkpoint_it_was_writing(
    checkpoints: Checkpoints, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    rng = random.Random(1)
    said = 0
    for _ in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", ENDLESS_SAVER, store.root, KEY, str(said + 1)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        said = int(process.stdout.readline())
        time.sleep(rng.uniform(0.0, 0.2))
        process.send_signal(signal.SIGKILL)
        said = int(([str(said), *process.communicate()[0].split()])[-1])
        found = checkpoints.load(KEY)
        assert found is not None and found[1]["step"] in (said, said + 1)
        assert (found[0]["step"] == found[1]["step"]).all()
        said = found[1]["step"]
    assert caplog.text == ""
    store.sweep()
    assert os.listdir(store.root / "tmp") == []

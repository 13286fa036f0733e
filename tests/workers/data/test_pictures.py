"""Compressed pictures: headers read the fast way, decodes that are wanted, work in threads."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.workers.data.test_sources import save, source
from workers.data.readers import pictures
from workers.data.readers.pictures import in_threads
from workers.data.sources import fingerprint_files, open_checked


def jpeg(mode: str = "RGB", size: tuple[int, int] = (7, 5), **options: object) -> bytes:
    stream = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], len(Image.new(mode, (1, 1)).getbands())))
    Image.fromarray(noise.astype(np.uint8).squeeze(), mode if mode == "CMYK" else None).save(stream, "JPEG", **options)
    return stream.getvalue()


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"optimize": True}, {"comment": b"x" * 300}])
@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("size", [(7, 5), (300, 2)])
def test_a_plain_jpeg_looks_as_pillow_says(mode: str, size: tuple[int, int], options: dict[str, object]) -> None:
    data = jpeg(mode, size, **options)
    with Image.open(io.BytesIO(data)) as picture:
        assert pictures._JpegHeaders().look(data) == ((picture.size), picture.mode, None) == (size, mode, None)


def test_what_is_no_plain_jpeg_is_left_to_pillow() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    png = io.BytesIO()
    Image.new("L", (3, 3)).save(png, "PNG")
    whole = jpeg()
    before_scan = whole[: whole.index(b"\xff\xda")]
    damaged = (b"", before_scan, whole[:40], whole[:2] + b"\xff" * 99)
    for data in (jpeg(exif=exif), jpeg("CMYK"), png.getvalue(), *damaged):
        assert pictures._JpegHeaders().look(data) is None


def test_the_digests_taken_with_the_headers_are_those_of_the_files(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in ("ant", "bee"):
            save(tmp_path / split / name / "a.jpg", jpeg())
            save(tmp_path / split / name / "b.png", Image.new("RGB", (7, 5)))
    files = sorted(tmp_path.rglob("*.*"))
    digests = open_checked(source("folder", tmp_path)).digests()
    assert sorted(digests) == files
    assert fingerprint_files(files, tmp_path, digests) == fingerprint_files(files, tmp_path)


def test_a_header_that_is_known_is_that_of_the_same_bytes_only() -> None:
    headers, plain, wide = pictures._JpegHeaders(), jpeg(), jpeg(size=(9, 5))
    seen = [headers.look(data) for data in (plain, plain, wide, wide, jpeg("L"), plain)]
    assert [look and look[:2] for look in seen] == [((7, 5), "RGB")] * 2 + [((9, 5), "RGB")] * 2 + [
        ((7, 5), "L"),
        ((7, 5), "RGB"),
    ]
    exif = Image.Exif()
    exif[0x0112] = 6
    cut = plain[: plain.index(b"\xff\xda") + 3]
    assert [headers.look(data) for data in (jpeg(exif=exif), cut, jpeg("CMYK"))] == [None] * 3


def test_a_file_is_read_to_its_end(tmp_path: Path) -> None:
    for size in (0, 1, pictures._READ - 1, pictures._READ, pictures._READ + 1, 3 * pictures._READ):
        (tmp_path / "file").write_bytes(content := bytes(range(256)) * (size // 256) + b"x" * (size % 256))
        assert pictures._whole(tmp_path / "file") == content


def slowly(number: int) -> int:
    time.sleep(1e-4)
    return number


@pytest.mark.parametrize("work", [int, slowly])
@pytest.mark.parametrize("count", [0, 1, 64, 1000])
def test_threads_keep_the_order_and_take_items_only_as_they_need_them(count: int, work: Callable[[int], int]) -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for number in range(count):
            taken += 1
            yield number

    results = in_threads(lambda number: work(number) * 2, items(), threads=2)
    for number, result in enumerate(results):
        assert result == 2 * number and taken <= number + 5 * pictures._BATCH
    assert taken == count


def computing(number: int) -> int:
    until = time.thread_time() + 3 * pictures._QUICK
    while time.thread_time() < until:
        pass
    return number


@pytest.mark.parametrize(("work", "threads"), [(int, False), (slowly, True), (computing, True)])
def test_threads_are_for_work_that_waits_or_computes_for_long(work: Callable[[int], int], threads: bool) -> None:
    names = list(in_threads(lambda number: (work(number), threading.get_ident())[1], range(500), threads=2))
    assert (set(names) != {threading.get_ident()}) == threads


@pytest.mark.parametrize("bad", [1, 400])
def test_an_error_in_a_thread_comes_out(bad: int) -> None:
    with pytest.raises(ZeroDivisionError):
        list(in_threads(lambda number: 1 // (slowly(number) - bad), range(bad + 1), threads=2))

"""Compressed pictures: checked by their headers, decoded when they are wanted.

Wherever compressed pictures lie, in files or in Parquet, a split of them is `EncodedPictures`: named encoded images, of
which any may be decoded without the others. Checking reads the header of every picture (and the checksums, where the
format has them) but decodes none; a picture cut short behind a sound header is therefore found by the decode alone, and
refused then. Both name the file or the row. A file is read once: its digest is taken from the same bytes.

Decided here: a dataset is grey only if every picture is, so one grey JPEG among colour ones becomes RGB,
never the other way round. Pictures are turned as their EXIF data says, which the fingerprint then tells. They are
resized only if `dataset.size` asks for it: the shorter side to that size, the longer one cropped to its middle.
Sixteen-bit and floating-point pictures are refused instead of being clipped.
"""

from __future__ import annotations

import hashlib
import os
import resource
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from PIL import Image

from jobs.errors import BadInput
from workers.data.layouts import Bytes, ChosenPictures, Labels, Pictures, Shape, Source, Split
from workers.data.readers.image_paths import name_below

_In = TypeVar("_In")
_Out = TypeVar("_Out")
Encoded = tuple[str, bytes | Path | None]
"""A picture's name, for errors, and its bytes or the file that holds them; None if they are missing."""

_GREY_MODES = frozenset({"1", "L", "LA"})
_COLOUR_MODES = frozenset({"P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"})
_MODES = _GREY_MODES | _COLOUR_MODES
LARGEST_PICTURE = 4096 * 4096
"""Pixels of the largest picture that is read."""
_BATCH = 64
"""Images that a thread takes at a time, or handing out the work would cost more than a small image does."""
_READ = 1 << 16
"""Bytes that are read at a time."""
_QUICK = 50e-6
"""Seconds of an item below which several threads compute longer than one, since they wait for the interpreter."""
_ORIENTATION = 0x0112
_EXIF_FIELDS = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")
"""Where Pillow keeps the EXIF data of a picture, or what it takes the orientation from in their absence."""
_PNG_EXIF = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")
"""What begins them in a PNG file, where they may stand behind the pixels."""
_JPEG_SCAN = 0xDA
_JPEG_FRAMES = frozenset({0xC0, 0xC1, 0xC2})
"""Of the sequential and the progressive JPEG."""
_JPEG_TABLES = frozenset({0xC4, 0xDB, 0xDD, 0xE0, 0xFE})
"""Huffman and quantisation tables, restarts, JFIF's segment, and comments: they say nothing of how a picture looks."""
_JPEG_REST = 8
"""Bytes that stand behind the name of a segment at least: those of a frame that are read here."""
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each orientation of EXIF; 1 is upright."""
_SIDEWAYS = {_TURNS[number] for number in (5, 6, 7, 8)}


def cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_threads(work: Callable[[_In], _Out], items: Iterable[_In], threads: int = 0) -> Iterator[_Out]:
    """`map` in threads, in order; for work that waits for a disk or lets go of the interpreter.

    As long as an item takes no time, as a small file does that lies in memory, this thread does all.

    Args:
        work: what is done with each item.
        items: taken as they are needed, so that only a few wait in memory.
        threads: how many; 0 takes what suits waiting for a disk.
    """
    threads = threads or min(16, 4 * cores())
    rest = iter(items)
    yield from _while_quick(work, rest)
    batches = iter(lambda: list(islice(rest, _BATCH)), [])
    with ThreadPoolExecutor(max_workers=threads) as pool:
        waiting: deque[Future[list[_Out]]] = deque()
        try:
            for batch in batches:
                waiting.append(pool.submit(lambda batch: [work(item) for item in batch], batch))
                if len(waiting) > threads:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _while_quick(work: Callable[[_In], _Out], items: Iterator[_In]) -> Iterator[_Out]:
    """The work on the first items, up to those that took longer; the very first may load code and is not judged."""
    size = 1
    while batch := list(islice(items, size)):
        computed, waited = time.thread_time(), _waits()
        results = [work(item) for item in batch]
        slow = time.thread_time() - computed > size * _QUICK or _waits() - waited > size // 8
        yield from results
        if size > 1 and slow:
            return
        size = min(2 * size, _BATCH)


def _waits() -> int:
    """How many times this thread has waited, as for a disk; what is in memory is read without."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw


@dataclass(frozen=True)
class EncodedPictures:
    """`count` compressed images.

    `encoded` walks over those of the given numbers, which ascend; None walks over all. `colour` turns grey to RGB.
    """

    source: Source
    count: int
    encoded: Callable[[Labels | None], Iterable[Encoded]]
    colour: bool = False
    _headers: _JpegHeaders = field(default_factory=lambda: _JpegHeaders(), init=False, repr=False, compare=False)

    def shape(self) -> Shape:
        """Read every header; see `workers.data.layouts.Pictures`."""
        return self._survey.shape

    def marks(self) -> tuple[str, ...]:
        """Whether any picture is turned as its EXIF data says, and the size that all are brought to."""
        size = self.source.size
        return (*(("exif",) if self._survey.turned else ()), *((f"size {size}",) if size else ()))

    def digests(self) -> Mapping[Path, str]:
        """The sha256 of every file that was read for its header."""
        return self._survey.digests

    @cached_property
    def _survey(self) -> _Survey:
        """What the headers of all pictures say."""
        first, colour, turned, digests = None, self.colour, False, dict[Path, str]()
        for number, header in enumerate(in_threads(self._header, self.encoded(None)), start=1):
            first = first or header.size
            colour, turned = colour or header.colour, turned or header.turned
            digests.update((header.digest,) if header.digest else ())
            if header.size != first and not self.source.size:
                fix = "resize the images to one size, or say dataset.size: 32 (the shorter side, the middle is kept)"
                raise self.source.refusal(
                    f"{fix}: {header.name} is {_times(header.size)}, the first one {_times(first)}"
                )
            self._report(number, self.count)
        size = self.source.size
        width, height = (size, size) if size else first or (0, 0)
        return _Survey((3 if colour else 1, height, width), turned, digests)

    def pixels(self, shape: Shape, numbers: Labels) -> Bytes:
        """Decode the pictures of these numbers; see `workers.data.layouts.Pictures`."""
        pixels = np.empty((len(numbers), *shape), dtype=np.uint8)
        mode = "RGB" if shape[0] == 3 else "L"

        def decode(numbered: tuple[int, Encoded]) -> None:
            index, (name, content) = numbered
            data = self._bytes((name, content))
            pixels[index] = self._open(name, data, lambda picture: self._decoded(name, picture, mode, shape))

        for done, _ in enumerate(in_threads(decode, enumerate(self.encoded(numbers)), cores()), start=1):
            self._report(done, len(numbers))
        return pixels

    def _report(self, done: int, total: int) -> None:
        if done % _BATCH == 0 or done == total:
            self.source.report(done, total)

    def _decoded(self, name: str, picture: Image.Image, mode: str, shape: Shape) -> Bytes:
        turn = turn_of(picture)
        upright = (picture if turn is None else picture.transpose(turn)).convert(mode)
        if self.source.size:
            upright = resized(upright, self.source.size)
        _, height, width = shape
        if upright.size != (width, height):
            raise self.source.refusal(f"plan again: {name} is {_times(upright.size)}, not {height}x{width} any more")
        return _channels_first(upright)

    def _header(self, encoded: Encoded) -> _Header:
        name, content = encoded
        data = self._bytes(encoded)
        size, mode, turn = self._headers.look(data) or self._open(name, data, _checked)
        if mode not in _MODES:
            raise self.source.refusal(f"save the images with 8 bits per channel: {name} has mode {mode}")
        self._require_size(name, size)
        digest = (content, hashlib.sha256(data).hexdigest()) if isinstance(content, Path) else None
        return _Header(name, size, mode in _COLOUR_MODES, turn is not None, digest)

    def _bytes(self, encoded: Encoded) -> bytes:
        name, content = encoded
        if content is None:
            raise self.source.refusal(f"store the image's bytes in the Parquet file: {name} has none")
        try:
            return content if isinstance(content, bytes) else _whole(content)
        except OSError as error:
            raise self.source.refusal(f"make {name} readable: {error}") from error

    def _open(self, name: str, data: bytes, work: Callable[[Image.Image], _Out]) -> _Out:
        try:
            with Image.open(BytesIO(data)) as picture:
                self._require_size(name, picture.size)
                if picture.format == "PNG" and data.find(b"IDAT") < max(map(data.rfind, _PNG_EXIF)):
                    picture.load()  # Pillow sees what follows the pixels only now
                return work(picture)
        except BadInput:
            raise
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise self._too_large(f"{name} is far larger") from error
        except Exception as error:  # decoders raise whatever the damage leads them to
            raise self.source.refusal(f"replace {name}, which is no readable image ({error})") from error

    def _require_size(self, name: str, size: tuple[int, int]) -> None:
        if size[0] * size[1] > LARGEST_PICTURE:
            raise self._too_large(f"{name} has {_times(size)}")

    def _too_large(self, which: str) -> BadInput:
        fix = f"resize the images: {which}; a picture may have {LARGEST_PICTURE:,} pixels at most, as 4096x4096 has"
        return self.source.refusal(fix)


@dataclass(frozen=True)
class ResizedPictures:
    """Pictures that were stored as plain pixels, brought to another size."""

    whole: Pictures
    size: int

    def shape(self) -> Shape:
        """Square."""
        return self.whole.shape()[0], self.size, self.size

    def pixels(self, shape: Shape, numbers: Labels) -> Bytes:
        """These images resized."""
        _, height, width = self.whole.shape()
        pixels = np.empty((len(numbers), *shape), dtype=np.uint8)
        for index, image in enumerate(self.whole.pixels((shape[0], height, width), numbers)):
            pixels[index] = _channels_first(resized(Image.fromarray(image.transpose(1, 2, 0).squeeze()), self.size))
        return pixels

    def marks(self) -> tuple[str, ...]:
        """Those of the pictures, and the size."""
        return (*self.whole.marks(), f"size {self.size}")


def with_size(split: Split, size: int) -> Split:
    """A split whose pictures all have a size, whether or not they were stored so."""

    def sized(pictures: Pictures) -> Pictures:
        if isinstance(pictures, ChosenPictures):
            return replace(pictures, whole=sized(pictures.whole))
        return pictures if isinstance(pictures, EncodedPictures) else ResizedPictures(pictures, size)

    return replace(split, pictures=sized(split.pictures))


def split_of_files(source: Source, root: Path, files: Sequence[tuple[Path, int]], colour: bool) -> Split:
    """The split of picture files with their labels.

    Args:
        source: where the user says the images are.
        root: the folder that names are relative to.
        files: paths and labels.
        colour: whether grey pictures become RGB.
    """

    def encoded(numbers: Labels | None) -> Iterator[Encoded]:
        for number in range(len(files)) if numbers is None else numbers:
            path = files[number][0]
            yield name_below(root, path), path

    labels = np.array([label for _, label in files], dtype=np.int64)
    return Split(labels, EncodedPictures(source, len(files), encoded, colour))


def digests_of(*parts: Split) -> Callable[[], Mapping[Path, str]]:
    """What gives the sha256 of the files that checking these splits reads."""
    pictures = [part.pictures for part in parts if isinstance(part.pictures, EncodedPictures)]
    return lambda: {path: digest for each in pictures for path, digest in each.digests().items()}


class _Header(NamedTuple):
    """What the header of a picture says: its size as people see it, whether it has colour and is to be turned."""

    name: str
    size: tuple[int, int]
    """Width and height."""
    colour: bool
    turned: bool
    digest: tuple[Path, str] | None
    """The file and its sha256; None for a picture that is only a part of a file."""


@dataclass(frozen=True)
class _Survey:
    """What the headers of all pictures say together."""

    shape: Shape
    turned: bool
    digests: Mapping[Path, str]


_Look = tuple[tuple[int, int], str, Image.Transpose | None]
"""Width and height of the upright picture, its mode, and how it must be turned."""


class _JpegHeaders:
    """What the segments of JPEG files say, without Pillow, which takes ten times as long to say the same.

    Most files of a data set have the same header, byte for byte: what one said is known of the next.
    """

    def __init__(self) -> None:
        self._last: tuple[bytes, _Look] | None = None

    def look(self, data: bytes) -> _Look | None:
        """The look of a plain picture; None for all that only Pillow can judge, such as one with EXIF data."""
        last = self._last
        if last is not None and data.startswith(last[0]) and len(data) > len(last[0]) + _JPEG_REST:
            return last[1]
        look, at = None, 2
        while data[:2] == b"\xff\xd8" and data[at : at + 1] == b"\xff" and len(data) > at + 2 + _JPEG_REST:
            marker = data[at + 1]
            if marker == _JPEG_SCAN:
                self._last = (data[: at + 2], look) if look else None
                return look
            if marker in _JPEG_FRAMES and data[at + 4] == 8 and data[at + 9] in (1, 3):
                height, width = int.from_bytes(data[at + 5 : at + 7]), int.from_bytes(data[at + 7 : at + 9])
                look = ((width, height), "L" if data[at + 9] == 1 else "RGB", None)
            elif marker not in _JPEG_TABLES:
                return None
            at += 2 + int.from_bytes(data[at + 2 : at + 4])
        return None


def _whole(path: Path) -> bytes:
    """The content of a file; a small one takes three calls of the system."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = [os.read(handle, _READ)]
        while len(parts[-1]) == _READ:
            parts.append(os.read(handle, _READ))
    finally:
        os.close(handle)
    return b"".join(parts) if len(parts) > 1 else parts[0]


def _checked(picture: Image.Image) -> _Look:
    """The look of a picture whose checksums are right."""
    (width, height), mode, turn = picture.size, picture.mode, turn_of(picture)
    if getattr(picture, "fp", None) is not None:  # else it was decoded, which checks more
        picture.verify()
    return (height, width) if turn in _SIDEWAYS else (width, height), mode, turn


def turn_of(picture: Image.Image) -> Image.Transpose | None:
    """How a picture must be turned to be seen as it was taken: orientation in EXIF data, read with the header.

    TIFF files have it elsewhere, and Pillow turns them itself. A PNG file may also have it in a text, as XMP or as
    ImageMagick writes it.
    """
    if picture.format == "TIFF" or not any(picture.info.get(name) for name in _EXIF_FIELDS):
        return None
    return _TURNS.get(picture.getexif().get(_ORIENTATION, 1))


def _channels_first(picture: Image.Image) -> Bytes:
    pixels = np.asarray(picture)  # [H, W] or [H, W, 3]
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def resized(picture: Image.Image, size: int) -> Image.Image:
    """A square picture of this size: the middle of the longer side is kept, then both are resized."""
    width, height = picture.size
    shorter = min(width, height)
    left, top = (width - shorter) // 2, (height - shorter) // 2
    square = picture.crop((left, top, left + shorter, top + shorter))
    return square.resize((size, size), Image.Resampling.BILINEAR)


def _times(size: tuple[int, int]) -> str:
    width, height = size
    return f"{height}x{width}"

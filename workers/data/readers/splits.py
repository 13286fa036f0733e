"""Splits by the names that people give them, as the `datasets` library knows them, in small letters or capitals."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import PurePath

from workers.data.layouts import Source

TRAIN = ("train", "training")
TEST = ("test", "testing", "eval", "evaluation")
VALIDATION = ("validation", "valid", "val", "dev")
NAMES = {"train": TRAIN, "test": TEST, "validation": VALIDATION}
"""The words for each split, the usual one first."""


@dataclass(frozen=True)
class Chosen:
    """The splits to train and to test on; `test` is None where it is cut from `train`.

    '' is the split of what names none; `spare` takes the place of a test split without labels.
    """

    train: str
    test: str | None
    spare: str | None = None


def choose(source: Source, present: Collection[str], example: str) -> Chosen:
    """The splits to use of those that are there.

    Args:
        source: what the user says of the test split.
        present: the splits that are there, '' for what names none.
        example: how two splits would be named in this layout.

    Raises:
        BadInput: there are not two, and nobody said how to cut one.
    """
    if source.test_share is not None:
        train = next((split for split in ("train", "") if split in present), None)
        if train is None and len(present) == 1:
            (train,) = present
        if train is not None:
            return Chosen(train, None)
    elif "train" in present:
        wanted = (split_of(PurePath(source.test)),) if source.test is not None else ("test", "validation")
        tests = [split for split in wanted if split is not None and split in present]
        if tests:
            return Chosen("train", tests[0], next(iter(tests[1:]), None))
        others = [split for split in sorted(present) if split not in ("", "train")]
        if source.test is not None and others:
            fix = f"must be {' or '.join(others)}, which is there, or a share such as 0.2"
            raise source.refusal(fix, field="dataset.test", value=source.test)
    seen = ", ".join(split or "files that name no split" for split in sorted(present)) or "nothing"
    ways = f"name both splits, e.g. {example}, or cut the test split off, e.g. dataset.test: 0.2"
    raise source.refusal(f"{ways}; there is {seen}, but not both splits")


def split_of(name: PurePath) -> str | None:
    """train, test or validation: the last word of a relative path that says so."""
    for word in reversed(re.findall("[a-z]+", name.with_suffix("").as_posix().lower())):
        if (split := _split_of_word(word)) is not None:
            return split
    return None


def _split_of_word(word: str) -> str | None:
    """The split that a word names; words that begin with train, test or valid do, too."""
    exact = next((split for split, words in NAMES.items() if word in words), None)
    return exact or next((split for split in NAMES if word.startswith(split[:5])), None)


def words_for_test(name: str | None) -> tuple[str, ...]:
    """The names under which the split to test on is looked for: the one asked for, else all usual ones."""
    if name is None:
        return (*TEST, *VALIDATION)
    return (name.lower(), *NAMES.get(split_of(PurePath(name)) or "", ()))

"""Splits by the names that people give them, as the `datasets` library knows them, in small letters or capitals."""

from __future__ import annotations

import re
from pathlib import PurePath

TRAIN = ("train", "training")
TEST = ("test", "testing", "eval", "evaluation")
VALIDATION = ("validation", "valid", "val", "dev")
NAMES = {"train": TRAIN, "test": TEST, "validation": VALIDATION}
"""The words for each split, the usual one first."""


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

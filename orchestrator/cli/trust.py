"""The question before a module of somebody else is imported: an experiment or a recipe may name one, and it is code.

What is installed was chosen by whoever installed it and is imported without a word, and so is what `PDD_TRUST` names.
For all else the command says which module it imports and from where; at a terminal it asks, once a module.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import sysconfig
from functools import lru_cache
from pathlib import Path

import typer
from rich.text import Text

from jobs.errors import BadInput
from orchestrator.cli.options import people

TRUSTED = "PDD_TRUST"
"""The variable with the names of packages that are imported without a question, with commas between them."""
_OURS = ("jobs", "workers", "orchestrator")


def confirm(path: str) -> None:
    """Say which module the import path of a plug-in takes along and, at a terminal, ask whether it may.

    Raises:
        BadInput: the answer is no.
    """
    _confirm_package(path.partition(":")[0].partition(".")[0], path)


@lru_cache(maxsize=64)
def _confirm_package(package: str, path: str) -> None:
    if package in _OURS or package in os.environ.get(TRUSTED, "").split(","):
        return
    place = _place_of(package)
    if place is None or any(place.is_relative_to(folder) for folder in _installed_folders()):
        return
    people.print(Text(f"{path} is imported from {place}: it is code and runs with your rights"), soft_wrap=True)
    if sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty() and not _is_yes(package):
        fix = f"read {place} first, then answer y, or export {TRUSTED}={package}"
        raise BadInput("command line", "plug-in", path, fix)


def _is_yes(package: str) -> bool:
    return typer.confirm(f"import {package}? (export {TRUSTED}={package} and it is not asked again)", err=True)


def _place_of(package: str) -> Path | None:
    """Where a package or module lies, found without importing it; None if it is not there or built in."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    origin = folders[0] if folders else spec.origin if spec is not None and spec.has_location else None
    return Path(origin).resolve() if origin else None


def _installed_folders() -> list[Path]:
    return [Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib", "stdlib")]

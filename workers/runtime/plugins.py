"""Importing what a registry or a user names as `package.module:Name`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

before_import: Callable[[str], None] = lambda path: None  # noqa: E731
"""Called with an import path whose module is not imported yet; it may raise. The command line asks people here."""


def object_named(path: str) -> Any:
    """The object with this import path.

    Raises:
        ImportError: there is no such module or name, or the path has another form.
    """
    module, _, name = path.partition(":")
    if module not in sys.modules:
        before_import(path)
    try:
        return getattr(importlib.import_module(module), name)
    except (AttributeError, ValueError) as error:  # ValueError: an empty module name
        raise ImportError(f"{path!r} cannot be imported: {error}") from error

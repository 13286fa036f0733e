"""Importing what a registry or a user names as `package.module:Name`."""

from __future__ import annotations

import importlib
from typing import Any


def object_named(path: str) -> Any:
    """The object with this import path.

    Raises:
        ImportError: there is no such module or name, or the path has another form.
    """
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (AttributeError, ValueError) as error:  # ValueError: an empty module name
        raise ImportError(f"{path!r} cannot be imported: {error}") from error

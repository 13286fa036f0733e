"""Versions of installed packages, asked of their distributions so that nothing heavy is imported."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from contextlib import suppress
from importlib import metadata


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """The version of Python and, by name, of those packages that are installed."""
    versions = {"python": platform.python_version()}
    for name in packages:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions

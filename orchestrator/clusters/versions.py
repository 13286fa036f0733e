"""The one table of versions: which packages compute, which code of ours runs, and what differs between two machines."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

from workers.store.versions import installed_versions

CODE = Path(__file__).resolve().parents[2]
"""The folder in which the packages of this project lie."""
SOURCES = ("jobs", "workers", "orchestrator")
"""The packages of this project: what is copied to the nodes."""
PACKAGES = ("torch", "torchvision", "ray", "submitit", "pyarrow", "numpy")
"""The packages of others whose versions are looked at, here and on a node."""


def package_versions() -> dict[str, str]:
    """The versions of Python and of the packages that are installed, as the journal and the doctor name them."""
    return installed_versions(PACKAGES)


def versions() -> dict[str, str]:
    """What must be the same on all nodes: Python, Ray and this project's code."""
    return {**installed_versions(["ray"]), "code": code_digest()}


def code_digest(root: Path = CODE) -> str:
    """A digest over the sources of this project."""
    digest = sha256()
    for package in SOURCES:
        for path in sorted((root / package).rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def difference(theirs: Mapping[str, str], head: Mapping[str, str]) -> str:
    """What differs between a node's versions and the head's, for people; empty when nothing does."""
    names = sorted(name for name in theirs.keys() | head.keys() if theirs.get(name) != head.get(name))
    return ", ".join(f"{name} is {theirs.get(name)} there and {head.get(name)} on the head" for name in names)

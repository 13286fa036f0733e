"""A finding: what a check of a machine or a cluster found, and how to fix it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One check: whether it is ok, what was found, and what to do if it is not."""

    name: str
    ok: bool
    found: str
    fix: str = ""

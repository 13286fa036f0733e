"""A machine with NVIDIA cards that is not there: a program `nvidia-smi` on the PATH that lists them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from workers.runtime.visible_cards import installed_cards

UUIDS = tuple(f"GPU-{number:08x}-0000-0000-0000-000000000000" for number in range(8))
LARGEST_MIB = 81_559


def pretend_cards(
    folder: Path, monkeypatch: pytest.MonkeyPatch, count: int, mib: int = LARGEST_MIB, extra: Sequence[str] = ()
) -> None:
    """Let this process and those that it starts find `count` cards of `mib` MiB; `extra` are lines after the last."""
    lines = [f"GPU {n}: NVIDIA H100 80GB HBM3 (UUID: {UUIDS[n]})" for n in range(count)]
    (folder / "bin").mkdir(exist_ok=True)
    program = folder / "bin" / "nvidia-smi"
    sizes = "\n".join(f"{UUIDS[n]}, {mib}" for n in range(count))
    listing = "\n".join([*lines, *extra])
    program.write_text(
        f"#!/bin/sh\nif [ \"$1\" = -L ]; then cat <<'END'\n{listing}\nEND\nelse cat <<'END'\n{sizes}\nEND\nfi\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}")
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    installed_cards.cache_clear()

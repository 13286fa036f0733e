"""What PyTorch's compiler needs of this machine: a C++ compiler, and a folder for the code that it makes.

By PyTorch's own choice all processes of a user share one folder in /tmp. A process that is killed while it writes there
leaves half a library, which every later process would load; and whoever makes that folder first decides what is loaded.
So each process has a folder of its own, which is removed when the process ends, or by the next one that compiles.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path

from jobs.errors import BadInput
from workers.store.held_folder import hold, sweep

VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
"""Where PyTorch reads the folder from; a folder that the user names there is kept."""
SCRATCH = "PDD_SCRATCH"
"""The variable by which a cluster of ours names its own folder, which goes when the cluster does."""
PREFIX = "pdd-code-"
_NOT_THE_USERS = (PREFIX, "torchinductor_")
"""How folders are called that another process of ours has named, or PyTorch by itself when it was imported."""


def has_cxx() -> bool:
    """Whether the program that CXX names, or else g++, is on the PATH."""
    return shutil.which(_cxx()) is not None


def require_cxx(place: str = "recipe") -> None:
    """Refuse compiled code on a CPU without a C++ compiler.

    Raises:
        BadInput: the program that CXX names, or else g++, is not on the PATH.
    """
    if not has_cxx():
        compiler = _cxx()
        fix = f"install {compiler}, name another C++ compiler in CXX, or take another engine"
        raise BadInput(place, "engine", "compiled", fix)


def _cxx() -> str:
    return os.environ.get("CXX", "g++")


@cache
def use_code_folder() -> None:
    """Name a folder of this process's own to PyTorch's compiler, unless the user has named one."""
    named = os.environ.get(VARIABLE)
    if named and not Path(named).name.startswith(_NOT_THE_USERS):
        return
    parent = Path(os.environ.get(SCRATCH) or tempfile.gettempdir())
    sweep(parent, PREFIX)
    new = Path(tempfile.mkdtemp(prefix=f".{PREFIX}", dir=parent))
    hold(new)
    folder = new.rename(parent / new.name.removeprefix("."))  # held before anybody can find it
    atexit.register(_remove, folder, os.getpid())
    os.environ[VARIABLE] = str(folder)


def _remove(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # not a child that was forked
        shutil.rmtree(folder, ignore_errors=True)

"""What new files and folders may be read by."""

from __future__ import annotations

import os


def mask() -> int:
    """The umask of this process."""
    current = os.umask(0o022)
    os.umask(current)
    return current

"""Names of things that live outside of this project: `package.module:Name`.

A base method, a data set or an architecture of one's own is named so wherever the name of a built-in one may stand.
This package only knows the form; `workers.runtime.plugins` imports what is named.
"""

from __future__ import annotations

import re

_IMPORT_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)
FORM = "package.module:Name"


def is_plug_in(name: str) -> bool:
    """Whether a name has the form `package.module:Name`."""
    return _IMPORT_PATH.fullmatch(name) is not None


def short_name(name: str) -> str:
    """The name in lower case without its module, for tables and keys; a built-in name as it is."""
    return name.partition(":")[2].lower() if is_plug_in(name) else name

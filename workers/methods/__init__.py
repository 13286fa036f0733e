"""The base methods around which progressive distillation is written, one module each.

`method_named` finds the class by the name a recipe uses. A method outside this package is named by its import
path, `package.module:Class`.
"""

from __future__ import annotations

from typing import Any

from jobs.documents import validate
from jobs.errors import BadInput
from jobs.specs import Frozen
from workers.methods.base import Method
from workers.runtime.plugins import object_named

_BUILT_IN = {
    "cafe": "workers.methods.cafe:FeatureAlignment",
    "cafe_dsa": "workers.methods.cafe:FeatureAlignment",
    "dc": "workers.methods.gradient:GradientMatching",
    "dm": "workers.methods.dm:DistributionMatching",
    "dream": "workers.methods.dream:RepresentativeMatching",
    "dsa": "workers.methods.gradient:GradientMatching",
    "idc": "workers.methods.idc:FormationMatching",
    "mtt": "workers.methods.mtt:TrajectoryMatching",
}


def method_named(name: str, place: str = "recipe") -> type[Method]:
    """The class of a base method.

    Raises:
        BadInput: there is no such method.
    """
    try:
        method: type[Method] = object_named(_BUILT_IN.get(name, name))
    except ImportError as error:
        known = ", ".join(sorted(_BUILT_IN))
        raise BadInput(place, "method", name, f"must be one of {known}, or package.module:Class") from error
    return method


def settings_for(name: str, values: dict[str, Any], place: str = "recipe") -> Frozen:
    """The method's own numbers, validated by its `Settings`.

    Raises:
        BadInput: an unknown, missing or impossible number.
    """
    return validate(method_named(name, place).Settings, values, place, prefix="distil.settings")

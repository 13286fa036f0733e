"""The base methods around which progressive distillation is written, one module each, by family.

`method_named` finds the class by the name a recipe uses. A method outside this package is named by its import
path, `package.module:Class`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jobs.documents import validate
from jobs.errors import BadInput
from jobs.fields import Frozen
from jobs.methods import SETTINGS, SOFT_LABELS, TrajectorySettings
from workers.runtime.plugins import object_named

if TYPE_CHECKING:  # takes torch along
    from workers.methods.base import Method

_BUILT_IN = {
    "cafe": "workers.methods.matching.cafe:FeatureAlignment",
    "cafe_dsa": "workers.methods.matching.cafe:FeatureAlignment",
    "datm": "workers.methods.trajectory.datm:DifficultyAlignedMatching",
    "dc": "workers.methods.matching.gradient:GradientMatching",
    "dd": "workers.methods.unrolled.unrolled:UnrolledTraining",
    "dm": "workers.methods.matching.dm:DistributionMatching",
    "dream": "workers.methods.matching.dream:RepresentativeMatching",
    "dsa": "workers.methods.matching.gradient:GradientMatching",
    "frepo": "workers.methods.ridge.frepo:FeatureRegression",
    "haba": "workers.methods.trajectory.haba:FactorisedMatching",
    "idc": "workers.methods.matching.idc:FormationMatching",
    "mtt": "workers.methods.trajectory.mtt:TrajectoryMatching",
    "tesla": "workers.methods.trajectory.tesla:ConstantMemoryMatching",
    "rat_bptt": "workers.methods.unrolled.unrolled:UnrolledTraining",
    "rfad": "workers.methods.ridge.rfad:RandomFeatures",
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
    """The method's own numbers, validated by its `Settings`; torch is imported for a method from outside only.

    Raises:
        BadInput: an unknown, missing or impossible number.
    """
    model = SETTINGS[name] if name in SETTINGS else method_named(name, place).Settings
    return validate(model, values, place, prefix="distil.settings")


def takes_soft_labels(name: str) -> bool:
    """Whether a method can match with soft labels."""
    return name in SOFT_LABELS if name in SETTINGS else method_named(name).soft_labels


def expert_epochs_needed(name: str, settings: Frozen) -> int | None:
    """The last epoch that a method may read of its experts' trajectories; None if it reads none."""
    if name in SETTINGS:
        return settings.last_target if isinstance(settings, TrajectorySettings) else None
    return method_named(name).expert_epochs_needed(settings)

"""What others have computed, in an experiment: whether it suits the arm that names it, before anything starts.

An arm's `imported_experts` are the experts of its first stage; later stages go on with as many of them as the recipe
asks for. Its `imported_set` is its first stage: with `stages: 1` nothing is distilled and the set is evaluated as those
of the arm's method are, with more stages the next ones are distilled on top of it. Whether trajectories have the
parameters of the arm's network is known only where networks can be built (`orchestrator.planning.requests`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from jobs.datasets import Facts
from jobs.errors import BadInput
from jobs.experiment import Arm
from jobs.kinds import ImportedSpec
from jobs.recipe_numbers import Recipe

Misfit = tuple[str, object, str]
"""A field of the import, its value, and what it must be."""


def require_fitting(
    arm: Arm, imports: Mapping[str, ImportedSpec], recipe: Recipe, facts: Facts, place: str, path: str
) -> None:
    """Refuse imports that do not suit their arm.

    Args:
        arm: which may name some.
        imports: what the store has, by key.
        recipe: of the arm's first stage.
        facts: of the dataset.
        place: where the arm stands.
        path: of the arm in there.

    Raises:
        BadInput: one is not in the store, is of the other kind, or has another shape than the arm needs.
    """
    for field, what in (("imported_experts", "experts"), ("imported_set", "set")):
        key = getattr(arm, field)
        if key is None:
            continue
        spec = imports.get(key)
        if spec is None or spec.what != what:
            fix = "is not in the store; `pdd import` puts it there" if spec is None else f"is {spec.what}, not {what}"
            raise BadInput(place, f"{path}.{field}", key, fix)
        misfits = _set_misfits(spec, arm, recipe, facts) if what == "set" else _experts_misfits(recipe, arm)
        for name, value, wanted in misfits:
            raise BadInput(place, f"{path}.{field}, {name}", value, wanted)


def _set_misfits(spec: ImportedSpec, arm: Arm, recipe: Recipe, facts: Facts) -> Iterator[Misfit]:
    """What a set differs in from a first stage of the arm, worst first."""
    shape, classes = (facts.channels, facts.height, facts.width), len(facts.class_names)
    if spec.shapes[0] != shape:
        yield "shape of an image", spec.shapes[0], f"must be {shape}, as the dataset's are"
    if spec.classes != classes:
        yield "classes", spec.classes, f"must be {classes}, as the dataset has"
    if spec.count != classes * (arm.ipc_per_stage or 0):
        fix = f"write ipc_per_stage: {spec.count // classes}, which is what the set has of each class"
        yield "images", spec.count, fix
    if spec.normalise not in ("", recipe.dataset.normalise):
        fix = f"write set: {{dataset.normalise: {spec.normalise}}}, since the recipe says {recipe.dataset.normalise}"
        yield "normalise", spec.normalise, fix
    labels = None if recipe.distil is None else recipe.distil.labels
    alike = spec.soft_labels == (labels is not None) and (labels is None or labels.temperature == 1.0)
    if arm.stages > 1 and not alike:
        fix = "must be as in the later stages, all soft at temperature 1 or none: see distil.labels of the recipe"
        yield "soft labels", spec.soft_labels, fix
    rates = {"evaluate.lr": recipe.evaluate.lr}
    if arm.stages > 1 and recipe.transition is not None:
        rates["transition.lr"] = recipe.transition.lr
    if spec.step_size is None and (learned := [name for name, rate in rates.items() if rate is None]):
        fix = f"import the set with its --step-size, or give {' and '.join(learned)} in the arm's `set`"
        yield "step size", None, fix


def _experts_misfits(recipe: Recipe, arm: Arm) -> Iterator[Misfit]:
    if recipe.experts is None:
        yield "method", arm.method, "has no experts; leave imported_experts out"

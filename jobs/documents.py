"""Reading what a user wrote: YAML in, validated models out, every complaint a `BadInput`.

Pydantic finds what is wrong; this module says it in our one form: the file, the field, the value, the fix.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from jobs.errors import BadInput

Model = TypeVar("Model", bound=BaseModel)
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast where libyaml is there


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        BadInput: the file is absent, is not YAML, or holds something other than a mapping.
    """
    try:
        value = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise BadInput(str(path), "file", error.strerror, "name a readable YAML file") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # also an impossible date
        raise BadInput(str(path), "file", _first_line(error), "fix the YAML at that place") from error
    if not isinstance(value, dict):
        raise BadInput(str(path), "file", type(value).__name__, "write a mapping of fields to values")
    if (field := _cycle(value, set())) is not None:
        raise BadInput(str(path), field, "an alias", "it stands for what it is part of; write its value instead")
    return value


def validate(model: type[Model], value: Mapping[str, Any], place: str, prefix: str = "") -> Model:
    """`value` as a `model`, or the first complaint as a `BadInput`."""
    try:
        return model.model_validate(dict(value))
    except ValidationError as error:
        raise _bad_input(model, error.errors(include_url=False)[0], place, prefix) from None


def validate_part(model: type[BaseModel], value: Mapping[str, Any], place: str, prefix: str = "") -> None:
    """Refuse fields that a `model` has not, or not in this form; that others are missing is no matter.

    Args:
        model: what the fields are a part of.
        value: some of its fields.
        place: where the user wrote them.
        prefix: what stands before their names in complaints.

    Raises:
        BadInput: the first complaint.
    """
    try:
        model.model_validate(dict(value))
    except ValidationError as error:
        wrong = [detail for detail in error.errors(include_url=False) if detail["type"] != "missing"]
        if wrong:
            raise _bad_input(model, wrong[0], place, prefix) from None


def set_path(target: dict[str, Any], path: str, value: object, place: str) -> None:
    """Set `target["a"]["b"]` for the path `a.b`; list positions are numbers.

    Raises:
        BadInput: the path runs through something that is neither a mapping nor a list.
    """
    *way, last = path.split(".")
    here: Any = target
    for name in way:
        if isinstance(here, dict):
            here = here.setdefault(name, {})
        elif isinstance(here, list) and name.isdigit() and int(name) < len(here):
            here = here[int(name)]
        else:
            raise BadInput(place, path, value, f"{name!r} is not a field there; look at the file's fields")
    if isinstance(here, dict):
        here[last] = value
    elif isinstance(here, list) and last.isdigit() and int(last) < len(here):
        here[int(last)] = value
    else:
        raise BadInput(place, path, value, f"{last!r} is not a field there; look at the file's fields")


def matching(pattern: str, form: str) -> AfterValidator:
    """The check of a text field: the whole text has this pattern, or the complaint says the form to write."""
    whole = re.compile(pattern)

    def check(text: str) -> str:
        if whole.fullmatch(text) is None:
            raise PydanticCustomError("form", "{form}", {"form": form})
        return text

    return AfterValidator(check)


Name = Annotated[
    str,
    matching(
        r"[A-Za-z0-9][A-Za-z0-9_.-]*",
        "write letters A to Z, digits, '_', '.' and '-', a letter or digit first: folders and runs are named after it",
    ),
]
"""What an experiment, a sweep or a table is called."""


def _cycle(value: object, flat: set[int], path: tuple[str, ...] = (), above: tuple[int, ...] = ()) -> str | None:
    """The path of a value that contains itself, as YAML's aliases allow; None if there is none.

    Args:
        value: what is searched.
        flat: identities of what was searched without a find, each of which is searched once.
        path: where the value stands.
        above: identities of what it stands in.
    """
    if not isinstance(value, dict | list) or id(value) in flat:
        return None
    if id(value) in above:
        return ".".join(path)
    items = value.items() if isinstance(value, dict) else enumerate(value)
    inner = (_cycle(part, flat, (*path, str(name)), (*above, id(value))) for name, part in items)
    cycle = next((cycle for cycle in inner if cycle is not None), None)
    flat.add(id(value))
    return cycle


def _bad_input(model: type[BaseModel], first: ErrorDetails, place: str, prefix: str) -> BadInput:
    field = ".".join([*([prefix] if prefix else []), *map(str, first["loc"])]) or "file"
    if first["type"] == "extra_forbidden":
        known = _fields_at(model, first["loc"][:-1])
        return BadInput(place, field, first["input"], f"unknown field; known here: {', '.join(known)}")
    if first["type"] == "missing":
        return BadInput(place, field, None, "required; add it")
    return BadInput(place, field, first["input"], _fix(first))


def _fix(error: ErrorDetails) -> str:
    kind, context, message = error["type"], error.get("ctx", {}), error["msg"]
    bounds = {
        "greater_than_equal": ("ge", "at least"),
        "greater_than": ("gt", "greater than"),
        "less_than_equal": ("le", "at most"),
        "less_than": ("lt", "less than"),
    }
    if kind in bounds:
        name, words = bounds[kind]
        return f"must be {words} {context[name]}"
    if kind == "literal_error":
        return f"must be one of {context['expected']}"
    if kind == "float_type" and isinstance(error["input"], str):
        return "write a number without quotes; YAML takes 1e-4 for text and 1.0e-4 for a number"
    return message[0].lower() + message[1:]


def _fields_at(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The field names known at a location inside a model (the model's own when it cannot be followed)."""
    here: Any = model
    for step in location:
        if isinstance(step, int) or not _is_model(here) or step not in here.model_fields:
            continue
        here = _model_in(here.model_fields[step].annotation) or here
    return sorted(here.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if _is_model(annotation):
        return annotation  # type: ignore[no-any-return]
    return next((found for part in getattr(annotation, "__args__", ()) if (found := _model_in(part))), None)


def _is_model(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, BaseModel)


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())

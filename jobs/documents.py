"""Reading what a user wrote: YAML in, validated models out, every complaint a `BadInput`.

Pydantic finds what is wrong; this module says it in our one form: the file, the field, the value, the fix.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError
from pydantic_core.core_schema import ErrorType

from jobs.errors import BadInput

Model = TypeVar("Model", bound=BaseModel)
DEEPEST = 50
"""Levels of mappings and lists in a file; nothing here needs ten."""
_OF_ONE_FIELD = frozenset(get_args(ErrorType)) - {"missing"}
"""Pydantic's own complaints, but for that of a missing field; ours about a mapping are about its fields together."""
LONGEST_NAME = 100
"""Letters of a name: files are called after it, and a file system takes 255 bytes."""


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # C's is ten times as fast
    """YAML's safe loader that refuses a field given twice and says where a value cannot be read."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
            if isinstance(value, int):
                str(value)  # Python reads hexadecimal numbers of any length, but shows none of 5,000 digits
            return value
        except ValueError as error:  # an impossible date, a number of 5,000 digits
            raise yaml.constructor.ConstructorError(None, None, str(error), node.start_mark) from error
        except (AttributeError, KeyError) as error:  # the library's own slips over a tag that does not fit its value
            problem = f"the value is not of the kind that its tag {node.tag} says"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode) and not key.tag.endswith(":merge")]
        seen: set[str] = set()
        for key in names:
            if key.value in seen:
                problem = f"the field {key.value!r} is there twice; leave one out"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)  # type: ignore[no-any-return]


def yaml_value(text: str) -> Any:
    """The value of a text, read as files are.

    Raises:
        yaml.YAMLError, ValueError, RecursionError: it is not YAML.
    """
    return yaml.load(text, Loader=_Loader)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        BadInput: the file is absent, is not YAML, gives a field twice, or holds something other than a mapping.
    """
    place = str(path)
    if path.exists() and not path.is_file():  # a pipe or a device may be read for ever
        raise BadInput(place, "file", "no plain file", "name a readable YAML file")
    try:
        text = path.read_text(encoding="utf-8")
        value = yaml_value(text)
    except OSError as error:
        raise BadInput(place, "file", error.strerror, "name a readable YAML file") from error
    except UnicodeDecodeError as error:
        raise BadInput(place, "file", f"byte {error.start}", "save it as UTF-8") from error
    except yaml.MarkedYAMLError as error:
        raise _bad_yaml(place, text, error) from error
    except (yaml.YAMLError, ValueError) as error:
        raise BadInput(place, "file", " ".join(str(error).split()), "fix the YAML at that place") from error
    except RecursionError:
        raise BadInput(place, "file", "nested too deeply", f"write at most {DEEPEST} levels") from None
    if not isinstance(value, dict):
        raise BadInput(place, "file", type(value).__name__, "write a mapping of fields to values")
    _require_a_tree(value, place, set())
    return value


def _bad_yaml(place: str, text: str, error: yaml.MarkedYAMLError) -> BadInput:
    """What the parser complains of, with the line that it means."""
    mark = error.problem_mark or error.context_mark
    problem = " ".join(str(error.problem or error.context).split())
    if mark is None:
        return BadInput(place, "file", problem, "fix the YAML at that place")
    lines = text.splitlines()
    line = lines[mark.line].strip() if mark.line < len(lines) else "the end of the file"
    return BadInput(place, f"line {mark.line + 1}", line[:80], f"fix the YAML at that place: {problem}")


def named_file(name: str, folder: Path, kind: str) -> Path:
    """The YAML file that a word of the command line means: a path with its suffix, or the name of a shipped file.

    Args:
        name: the word.
        folder: where the shipped ones lie.
        kind: what they are, for the complaint.

    Raises:
        BadInput: there is no shipped file of this name.
    """
    path = Path(name) if Path(name).suffix else folder / f"{name}.yaml"
    if path.parent == folder and not path.is_file():
        known = sorted(file.stem for file in folder.glob("*.yaml"))
        fix = f"must be a YAML file or one of {', '.join(known)}{closest(name, known)}"
        raise BadInput("command line", kind, name, fix)
    return path


def validate(model: type[Model], value: Mapping[str, Any], place: str, prefix: str = "") -> Model:
    """`value` as a `model`, or the first complaint as a `BadInput`."""
    try:
        return model.model_validate(dict(value))
    except ValidationError as error:
        raise _bad_input(model, error.errors(include_url=False)[0], place, prefix) from None


def validate_part(model: type[BaseModel], value: Mapping[str, Any], place: str, prefix: str = "") -> None:
    """Refuse fields that a `model` has not, or not in this form; that others are missing is no matter.

    What fields must be to each other is not asked either, since those that are not there may be what makes them fit.

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
        details = error.errors(include_url=False)
        wrong = [detail for detail in details if not _of_several_fields(detail)]
        if wrong:
            raise _bad_input(model, wrong[0], place, prefix) from None


def _of_several_fields(detail: ErrorDetails) -> bool:
    """Whether a complaint may be for the sake of a field that is not there."""
    return detail["type"] == "missing" or (detail["type"] not in _OF_ONE_FIELD and isinstance(detail["input"], Mapping))


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


def closest(word: str, known: Iterable[str]) -> str:
    """The end of a complaint that asks for the known word which was probably meant, or nothing."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


NAME_FORM = (
    f"write at most {LONGEST_NAME} letters A to Z, digits, '_', '.' and '-', a letter or digit first: "
    "folders and runs are named after it"
)
NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9_.-]{{0,{LONGEST_NAME - 1}}}")
Name = Annotated[
    str,
    matching(
        NAME.pattern,
        NAME_FORM,
    ),
]
"""What an experiment, a sweep or a table is called."""


def _require_a_tree(
    value: object, place: str, done: set[int], path: tuple[str, ...] = (), above: tuple[int, ...] = ()
) -> None:
    """Refuse a value that contains itself, as YAML's aliases allow, or that is nested too deeply.

    Args:
        value: what is searched.
        place: the file.
        done: identities of what was searched, each of which is searched once.
        path: where the value stands.
        above: identities of what it stands in.

    Raises:
        BadInput: naming the field.
    """
    if not isinstance(value, dict | list) or id(value) in done:
        return
    field = ".".join(path)
    if id(value) in above:
        raise BadInput(place, field, "an alias", "it stands for what it is part of; write its value instead")
    if len(path) > DEEPEST:
        raise BadInput(place, f"{field[:40]}...", f"nested {len(path)} deep", f"write at most {DEEPEST} levels")
    for name, part in value.items() if isinstance(value, dict) else enumerate(value):
        _require_a_tree(part, place, done, (*path, str(name)), (*above, id(value)))
    done.add(id(value))


def _bad_input(model: type[BaseModel], first: ErrorDetails, place: str, prefix: str) -> BadInput:
    field = ".".join([*([prefix] if prefix else []), *map(str, first["loc"])]) or "file"
    if first["type"] == "extra_forbidden":
        known = _fields_at(model, first["loc"][:-1])
        guess = closest(str(first["loc"][-1]), known)
        return BadInput(place, field, first["input"], f"unknown field; known here: {', '.join(known)}{guess}")
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

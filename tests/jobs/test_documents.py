"""`jobs.documents` and `jobs.errors`: every complaint names the place, the field, the value and the fix."""

from __future__ import annotations

import copy
import os
import pickle
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import Field

from jobs.documents import read_yaml, set_path, validate
from jobs.errors import BadInput, PddError
from jobs.fields import Count, Fraction, Frozen, Positive


class Wheel(Frozen):
    radius: Positive = 1.0
    colour: Literal["red", "green"] = "red"


class Cart(Frozen):
    name: str
    load: Fraction = 0.0
    wheels: tuple[Wheel, ...] = Field(default=(), strict=False)
    named: dict[str, Wheel] = {}
    horses: Count = 1


def complaint(value: dict[str, Any], prefix: str = "") -> BadInput:
    with pytest.raises(BadInput) as caught:
        validate(Cart, value, "cart.yaml", prefix)
    return caught.value


def test_a_valid_mapping_becomes_the_model() -> None:
    cart = validate(Cart, {"name": "c", "wheels": [{"radius": 2}], "load": 0.5}, "cart.yaml")
    assert cart == Cart(name="c", wheels=(Wheel(radius=2.0),), load=0.5)


@pytest.mark.parametrize(
    ("change", "field", "value", "fix"),
    [
        ({"wheel": 1}, "wheel", 1, "unknown field; known here: horses, load, name, named, wheels"),
        ({"wheels": [{"size": 1}]}, "wheels.0.size", 1, "unknown field; known here: colour, radius"),
        ({"named": {"left": {"size": 1}}}, "named.left.size", 1, "unknown field; known here: colour, radius"),
        ({"wheels": [{}, {"radius": 0}]}, "wheels.1.radius", 0, "must be greater than 0"),
        ({"wheels": [{"colour": "blue"}]}, "wheels.0.colour", "blue", "must be one of 'red' or 'green'"),
        ({"load": 1.0}, "load", 1.0, "must be less than 1"),
        ({"load": -0.1}, "load", -0.1, "must be at least 0"),
        (
            {"load": "1e-4"},
            "load",
            "1e-4",
            "write a number without quotes; YAML takes 1e-4 for text and 1.0e-4",
        ),
        ({"horses": 0}, "horses", 0, "must be at least 1"),
        ({"horses": "2"}, "horses", "2", "input should be a valid integer"),
        ({"horses": 2.0}, "horses", 2.0, "input should be a valid integer"),
        ({"horses": True}, "horses", True, "input should be a valid integer"),
        ({"horses": None}, "horses", None, "input should be a valid integer"),
        ({"name": 7}, "name", 7, "input should be a valid string"),
        ({"wheels": {"radius": 1}}, "wheels", {"radius": 1}, "input should be a valid tuple"),
        ({1: 2}, "1", 1, "keys should be strings"),
    ],
)
def test_a_complaint_names_field_value_and_mend(change: dict[str, Any], field: str, value: object, fix: str) -> None:
    error = complaint({"name": "c", **change})
    assert (error.place, error.field, error.value) == ("cart.yaml", field, value)
    assert error.fix.startswith(fix)
    assert str(error) == f"cart.yaml: {field} is {value!r}: {error.fix}"


def test_a_missing_field_is_named() -> None:
    assert str(complaint({})) == "cart.yaml: name is None: required; add it"


def test_the_prefix_says_where_in_the_file_the_mapping_stands() -> None:
    assert complaint({"name": "c", "horses": 0}, prefix="set.cart").field == "set.cart.horses"


def test_a_yaml_file_is_read_as_utf_8_into_a_mapping(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("name: Bläss\nlr: 1.0e-4\n", encoding="utf-8")
    assert read_yaml(tmp_path / "a.yaml") == {"name": "Bläss", "lr": 1e-4}


@pytest.mark.parametrize(
    ("content", "field", "value", "fix"),
    [
        (b"arms: [1, 2\nname: x", "line 2", "name: x", "fix the YAML at that place: did not find expected"),
        (b"a:\n\t- 1", "line 2", "- 1", "fix the YAML at that place: found character that cannot start"),
        (b"name: \xff", "file", "byte 6", "save it as UTF-8"),
        (b"- 1\n- 2", "file", "list", "write a mapping of fields to values"),
        (b"", "file", "NoneType", "write a mapping of fields to values"),
        (b"!!python/object/apply:os.getcwd []", "line 1", "!!python", "could not determine a constructor"),
    ],
)
def test_a_file_without_a_mapping_is_refused_by_name(
    tmp_path: Path, content: bytes, field: str, value: str, fix: str
) -> None:
    file = tmp_path / "bad.yaml"
    file.write_bytes(content)
    with pytest.raises(BadInput) as caught:
        read_yaml(file)
    assert (caught.value.place, caught.value.field) == (str(file), field)
    assert value in str(caught.value.value)
    assert fix in caught.value.fix
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"none\.yaml: file is 'No such file or directory': name a readable"):
        read_yaml(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("path", "changed"),
    [
        ("a", {"a": 9, "l": [{"x": 1}, 2]}),
        ("a.b", {"a": {"b": 9}, "l": [{"x": 1}, 2]}),
        ("l.0.x", {"a": {"b": 1}, "l": [{"x": 9}, 2]}),
        ("l.1", {"a": {"b": 1}, "l": [{"x": 1}, 9]}),
        ("new.deep", {"a": {"b": 1}, "l": [{"x": 1}, 2], "new": {"deep": 9}}),
    ],
)
def test_a_dotted_path_sets_one_value(path: str, changed: dict[str, Any]) -> None:
    target: dict[str, Any] = {"a": {"b": 1}, "l": [{"x": 1}, 2]}
    set_path(target, path, 9, "--set")
    assert target == changed


@pytest.mark.parametrize(
    ("path", "step"),
    [("a.b.c", "c"), ("a.b.c.d", "c"), ("l.2", "2"), ("l.2.x", "2"), ("l.x", "x"), ("l.-1", "-1")],
)
def test_a_path_through_something_without_fields_is_refused(path: str, step: str) -> None:
    target: dict[str, Any] = {"a": {"b": 1}, "l": [{"x": 1}, 2]}
    with pytest.raises(BadInput, match=f"--set: {path} is 9: '{step}' is not a field there"):
        set_path(target, path, 9, "--set")
    assert target == {"a": {"b": 1}, "l": [{"x": 1}, 2]}


@pytest.mark.parametrize("carry", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])
def test_bad_input_keeps_its_four_parts_on_the_way_between_processes(carry: Any) -> None:
    error = carry(BadInput("f.yaml", "arms.0", 3, "write 4"))
    assert (error.place, error.field, error.value, error.fix) == ("f.yaml", "arms.0", 3, "write 4")
    assert str(error) == "f.yaml: arms.0 is 3: write 4"
    assert isinstance(error, PddError)


@pytest.mark.parametrize(
    ("text", "field", "told"),
    [
        ("name: x\nabout: 2001-99-99", "line 2", "month must be in 1..12"),
        (f"networks: {'9' * 5000}", "line 1", "digits"),
        (f"networks: 0x{'f' * 5000}", "line 1", "digits"),
        ("name: x\nabout: !!timestamp abc", "line 2", "its tag"),
        ("name: x\nabout: !!bool abc", "line 2", "its tag"),
        ("name: x\nseeds: [1,\n  b: }", "line 3", "'b: }'"),
        ("name: x\nscale: tiny\nname: y", "line 3", "'name' is there twice"),
        ("set: {a: 1, a: 2}", "line 1", "'a' is there twice"),
        ("name: 'x", "line 1", "end of"),
        ("name: x\n---\nname: y", "line 2", "another document"),
        ("".join(f"{' ' * n}a:\n" for n in range(900)), "a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a....", "51 deep"),
        ("set: &a\n  b: *a", "set.b", "part of"),
        ("arms: &a\n- [*a]", "arms.0.0", "part of"),
    ],
)
def test_yaml_that_python_cannot_hold_is_refused_at_its_place(tmp_path: Path, text: str, field: str, told: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(BadInput) as refused:
        read_yaml(path)
    assert refused.value.field == field and told in str(refused.value)


def test_a_file_of_another_encoding_is_refused_with_the_byte(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_bytes("about: é".encode("latin-1"))
    with pytest.raises(BadInput, match="byte 7.*UTF-8"):
        read_yaml(tmp_path / "mine.yaml")


def test_a_merged_field_may_be_given_again(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}")
    assert read_yaml(tmp_path / "mine.yaml")["b"] == {"x": 3, "y": 2}


def test_a_long_value_is_cut_in_the_message_and_whole_in_its_part() -> None:
    error = BadInput("f", "field", "x" * 5000, "shorten it")
    assert len(str(error)) < 300 and error.value == "x" * 5000


def test_an_alias_that_is_used_often_is_no_cycle(tmp_path: Path) -> None:
    lines = ["a0: &a0 [1, 1]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 60))]
    (tmp_path / "mine.yaml").write_text("\n".join(lines))
    assert len(read_yaml(tmp_path / "mine.yaml")) == 60


def test_a_pipe_is_refused_and_not_read_for_ever(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.yaml")
    with pytest.raises(BadInput, match="no plain file"):
        read_yaml(tmp_path / "a.yaml")

"""Fields of what a user may write: their types, and the frozen model that all specs and settings derive from."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
)
from pydantic_core import PydanticCustomError

Count = Annotated[int, Field(ge=1)]
Index = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Counts = Annotated[tuple[int, int], Field(strict=False)]
"""Forgetting scores in [low, high)."""
Classes = Annotated[tuple[Index, ...], Field(strict=False)]
"""Class ids, ascending."""


def _finite(settings: dict[str, Any]) -> dict[str, Any]:
    """JSON has no word for NaN and infinity: both would enter a key as null."""
    for name, value in settings.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise PydanticCustomError("finite", "{name} must be a finite number", {"name": name})
    return settings


Settings = Annotated[dict[str, Any], AfterValidator(_finite)]
"""A base method's own numbers, which only the method knows."""


def stored_as(name: str, stored: str) -> Any:
    """A field that manifests and keys know by another name; both are read."""
    return Field(validation_alias=AliasChoices(name, stored), serialization_alias=stored)


class Frozen(BaseModel):
    """Base of everything a user may write: immutable, strict about types, unknown fields refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=True)

    later: ClassVar[frozenset[str]] = frozenset()
    """Fields that came after results existed. At its default such a field says nothing new and is not written, so
    what was computed before keeps its key; the default of one can therefore never be changed."""

    @model_serializer(mode="wrap")
    def _without_silent_fields(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = write(self)
        if self.later:
            fields = type(self).model_fields
            for name in self.later & written.keys():
                if getattr(self, name) == fields[name].default:
                    del written[name]
        return written

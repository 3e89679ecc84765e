"""The JSON files of an output, and the schema that each of them is checked against when it is read back.

Anybody may have written or damaged these files, so no value of theirs is used before it has passed here. Keys that a
schema does not name stay as they are: another version may have written them.
"""

from functools import cache
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, Field, StringConstraints, TypeAdapter, ValidationError

# Larger than any of these files: run.json lists the inputs, report.json the runs, a kilobyte each.
MOST_BYTES = 256 << 20
_MESSAGE_CHARACTERS = 200

_T = TypeVar("_T")

# Twelve hex digits, as a run draws them; names of files are made of this identifier.
RunId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{12}$")]
ProcessId = Annotated[int, Field(ge=1, lt=1 << 31)]
Count = Annotated[int, Field(ge=0, lt=1 << 63)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class ExportRecord(BaseModel):
    """``export.json``: the format of an export, and the names of everything in its folder."""

    format: str
    names: list[str]


class BadRecordError(ValueError):
    """Content that its schema refuses; the message is one line that says where and why."""


def parse(schema: type[_T], content: bytes) -> _T:
    """Return the JSON text ``content`` as a value of ``schema``.

    Args:
        schema: a class, or a type such as ``dict[str, int]``.
        content: UTF-8 text.

    Raises:
        BadRecordError: the text is no JSON, or does not fit the schema.
    """
    try:
        return _adapter(schema).validate_json(content, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise BadRecordError(f"{where and f'{where}: '}{first['msg']}"[:_MESSAGE_CHARACTERS]) from None


@cache
def _adapter(schema: Any) -> TypeAdapter[Any]:
    return TypeAdapter(schema)

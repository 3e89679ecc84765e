"""The JSON files of an output, and a schema for each; files are checked against their schema when they are read.

Any program may have written or damaged these files, so values are checked before they are used. Keys that a schema does
not name stay as they are: another version may have written them.
"""

from datetime import UTC, datetime
from functools import cache
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    model_validator,
)

# More than any of these files has: run.json lists the inputs and report.json the runs, with a kilobyte for each.
MOST_BYTES = 256 << 20
_MESSAGE_CHARACTERS = 200

_T = TypeVar("_T")


def _checked_time(text: str) -> str:
    try:
        datetime.fromisoformat(text).astimezone(UTC)
    except OverflowError as error:
        raise ValueError("a time before the first year or after the last") from error
    return text


# Twelve hex digits. Names of files contain this identifier, so no other characters are allowed.
RunId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{12}$")]
ProcessId = Annotated[int, Field(ge=1, lt=1 << 31)]
Count = Annotated[int, Field(ge=0, lt=1 << 63)]
Time = Annotated[str, AfterValidator(_checked_time)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Cosine = Annotated[float, Field(ge=-1.001, le=1.001)]  # a rounding error beyond 1


class SettingsRecord(BaseModel, extra="allow"):
    """The settings of vectors, in ``run.json`` and in shards; settings without a field here are only compared."""

    model: str = ""
    checkpoint: str = ""
    window_s: Seconds = 0.0
    hop_s: Seconds = 0.0
    pooling: str = ""
    precision: str = ""
    embedding_size: Count = 0


class OptionsRecord(BaseModel, extra="allow"):
    """The options of a run that are read back."""

    input: list[str] = []


class AgreementRecord(BaseModel, extra="allow"):
    """Cosines between vectors of a reduced precision and vectors of fp32."""

    windows: Count
    least: Cosine
    median: Cosine


class RunRecord(BaseModel, extra="allow"):
    """``run.json``."""

    settings: SettingsRecord
    options: OptionsRecord = OptionsRecord()
    agreement: AgreementRecord | None = None

    def content(self) -> dict[str, Any]:
        """Return the content of the file, without fields that the file does not have."""
        return self.model_dump(exclude_unset=True)


class PastRunRecord(BaseModel, extra="allow"):
    """One run in the history of ``report.json``; docs/schema.md explains the fields."""

    run_id: RunId
    host: str
    started: Time
    state: str = "running"
    wall_s: Seconds = 0.0
    recordings_finished: Count = 0
    recordings_failed: Count = 0
    windows_written: Count = 0
    times_real_time: Seconds | None = None
    agreement: AgreementRecord | None = None


class BalanceRecord(BaseModel, extra="allow"):
    """The balance of the last run; while the run goes on, only the number of listed recordings."""

    listed: Count = 0
    already_done: Count = 0
    embedded: Count = 0
    failed: Count = 0
    balanced: bool = False

    @model_validator(mode="after")
    def _is_whole(self) -> "BalanceRecord":
        missing = set(BalanceRecord.model_fields) - self.model_fields_set
        if missing and "balanced" in self.model_fields_set:
            raise ValueError(f"{min(missing)} is missing")
        return self


class ReportRecord(BaseModel, extra="allow"):
    """``report.json``."""

    state: str = ""
    recordings: BalanceRecord = BalanceRecord()
    output: dict[str, int | float] = {}
    runs: list[PastRunRecord] = []

    def content(self) -> dict[str, Any]:
        """Return the content of the file, without fields that the file does not have; runs have every field."""
        return self.model_dump(exclude_unset=True) | {"runs": [run.model_dump() for run in self.runs]}


class ProbeRecord(BaseModel, extra="allow"):
    """``probe.json``, as far as it is read back."""

    classes: list[str]
    exclusive: bool
    layer: str | None = None
    settings: dict[str, Any] = {}
    files: dict[str, str]  # digests


class ExportRecord(BaseModel):
    """``export.json``: the format of an export, and the names of everything in its folder."""

    format: str
    names: list[str]


class BadRecordError(ValueError):
    """Content that does not fit its schema; the message is one line with the place and the reason."""


def parse(schema: type[_T], content: bytes) -> _T:
    """Return the JSON text ``content`` as a value of ``schema``.

    Args:
        schema: A class, or a type such as ``dict[str, int]``.
        content: UTF-8 text.

    Raises:
        BadRecordError: The text is no JSON, or does not fit the schema.
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

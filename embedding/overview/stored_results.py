"""Results of other jobs that the page shows: detections and probes, as their JSON files describe them."""

from dataclasses import dataclass
from typing import Annotated, TypeVar

from pydantic import BaseModel, Field

from embedding import storage
from embedding.errors import RequestError
from embedding.output import json_files

# Sets of detections, and probes, that a page shows; the first by name.
MOST_SHOWN = 6

_Record = TypeVar("_Record", bound=BaseModel)

Number = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]


class DensityRecord(BaseModel, extra="allow"):
    """Call density in ``summary.json``."""

    judged: json_files.Count
    density: Share
    density_low: Share
    density_high: Share
    windows_with_call: Number
    windows_with_call_low: Number
    windows_with_call_high: Number


class DetectedClass(BaseModel, extra="allow"):
    """A class in ``summary.json``."""

    label: str
    detections: json_files.Count = 0
    recordings: json_files.Count = 0
    by_hour: Annotated[list[json_files.Count], Field(min_length=24, max_length=24)] = [0] * 24
    by_date: dict[str, json_files.Count] = {}
    density: DensityRecord | None = None


class SummaryRecord(BaseModel, extra="allow"):
    """``summary.json`` of detections."""

    classes: list[DetectedClass]


class ProbeFigures(BaseModel, extra="allow"):
    """``probe.json``, as far as the page shows it; probes of earlier versions have no curves."""

    classes: list[str]
    curves: dict[str, list[tuple[Share, Share]]] = {}
    confusions: list[list[json_files.Count]] = []

    @property
    def has_confusions(self) -> bool:
        """Each class has a row and a column."""
        n = len(self.classes)
        return len(self.confusions) == n and all(len(row) == n for row in self.confusions)


@dataclass(frozen=True)
class StoredResults:
    """Results of other jobs.

    Attributes:
        detections: Summaries by name.
        probes: Figures by name.
        warnings: Sentences about files that cannot be read.
    """

    detections: dict[str, SummaryRecord]
    probes: dict[str, ProbeFigures]
    warnings: list[str]

    @classmethod
    def read(cls, root: str) -> "StoredResults":
        """Read the results in an output; a damaged file becomes a warning, because the page can do without it.

        Raises:
            OSError: The storage failed.
        """
        warnings: list[str] = []
        detections = _read_all(root, "detections", "summary.json", SummaryRecord, warnings)
        probes = _read_all(root, "probes", "probe.json", ProbeFigures, warnings)
        return cls(detections, probes, warnings)


def _read_all(root: str, folder: str, name: str, schema: type[_Record], warnings: list[str]) -> dict[str, _Record]:
    found: dict[str, _Record] = {}
    for each in storage.list_folders(storage.join(root, folder))[:MOST_SHOWN]:
        uri = storage.join(root, folder, each, name)
        try:
            found[each] = json_files.parse(schema, storage.read_bytes(uri, json_files.MOST_BYTES))
        except FileNotFoundError:  # being written, or of a run that died
            continue
        except (json_files.BadRecordError, RequestError) as error:
            warnings.append(f"{uri} cannot be read: {error}")
    return found

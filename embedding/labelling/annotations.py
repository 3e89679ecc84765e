"""Annotations as read from files, and the recordings that they belong to."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from embedding.errors import RequestError
from embedding.text import plural

PRESENT, ABSENT, UNSURE = "present", "absent", "unsure"
VERDICTS = (PRESENT, ABSENT, UNSURE)
MAX_NAMES_SHOWN = 5


@dataclass(frozen=True)
class Annotation:
    """A label from ``start_s`` to ``end_s``.

    Attributes:
        file: The recording as the file of annotations names it: a path of any system, a name, or a stem.
        start_s: Seconds from the start of the recording; None for the start.
        end_s: Seconds from the start of the recording; None for the end.
        label: The label; None says that the recording was searched, and nothing was found in it.
        verdict: PRESENT, ABSENT or UNSURE.
    """

    file: str
    start_s: float | None
    end_s: float | None
    label: str | None
    verdict: str = PRESENT


@dataclass(frozen=True)
class Unmatched:
    """Annotations whose recording is not among those of the output.

    Attributes:
        n_annotations: Number of annotations.
        files: Names of their recordings.
    """

    n_annotations: int
    files: list[str]

    def __str__(self) -> str:
        shown = ", ".join(self.files[:MAX_NAMES_SHOWN])
        more = f" and {len(self.files) - MAX_NAMES_SHOWN:,} more" if len(self.files) > MAX_NAMES_SHOWN else ""
        return (
            f"{plural(self.n_annotations, 'annotation')} of {plural(len(self.files), 'file')} match no recording of "
            f"the output: {shown}{more}"
        )


class RecordingNames:
    """The recordings of an output, found by path, by name or by stem."""

    def __init__(self, files: Iterable[str]) -> None:
        """Index the recordings.

        Args:
            files: Their paths or URIs.
        """
        self._files = set(files)
        self._by_name: defaultdict[str, list[str]] = defaultdict(list)
        for file in sorted(self._files):
            name = file.rpartition("/")[2]
            self._by_name[name.lower()].append(file)
            stem = name.rpartition(".")[0]
            if stem:
                self._by_name[stem.lower()].append(file)

    def find(self, name: str, source: str) -> str | None:
        """Return the recording that a name means; None if there is none.

        Args:
            name: A path or URI of any system, a name, or a name without its suffix. Of several recordings with the
                name, the one whose folders agree best is meant.
            source: The file with the annotation, for messages.

        Raises:
            RequestError: Several recordings are meant.
        """
        if name in self._files:
            return name
        parts = [part for part in re.split(r"[/\\]+", name) if part not in ("", ".")]
        if not parts:
            return None
        candidates = self._by_name.get(parts[-1].lower(), [])
        if len(candidates) < 2:
            return candidates[0] if candidates else None
        agreeing = [_n_shared_folders(file, parts) for file in candidates]
        best = max(agreeing)
        if agreeing.count(best) > 1:
            raise RequestError(
                f"--labels: {name!r} in {source} may be {candidates[0]} or {candidates[1]}: name the recordings with "
                "their folders"
            )
        return candidates[agreeing.index(best)]


def _n_shared_folders(file: str, parts: Sequence[str]) -> int:
    """Return how many folders, from the last on, a file shares with a path."""
    n = 0
    for own, other in zip(reversed(file.split("/")[:-1]), reversed(parts[:-1]), strict=False):
        if own.lower() != other.lower():
            break
        n += 1
    return n


def match_recordings(
    annotations: Iterable[tuple[str, Annotation]], names: RecordingNames
) -> tuple[list[Annotation], Unmatched]:
    """Give annotations the names of their recordings as the output has them.

    Args:
        annotations: Annotations, each with the file from which it was read.
        names: The recordings of the output.

    Returns:
        The annotations of recordings of the output, and the others.

    Raises:
        RequestError: A name means several recordings.
    """
    found = list(annotations)
    recording_of: dict[str, str | None] = {}
    for source, annotation in found:
        if annotation.file not in recording_of:
            recording_of[annotation.file] = names.find(annotation.file, source)
    _unmatch_other_folders(recording_of)
    matched = []
    missing: dict[str, int] = {}
    for _, annotation in found:
        file = recording_of[annotation.file]
        if file is None:
            missing[annotation.file] = missing.get(annotation.file, 0) + 1
        else:
            matched.append(replace(annotation, file=file))
    return matched, Unmatched(sum(missing.values()), sorted(missing))


def _unmatch_other_folders(recording_of: dict[str, str | None]) -> None:
    """Let a recording have the name whose folders agree best, where several files of one name mean it.

    Recorders of several sites use the same names, and the output may hold the recordings of one site alone.

    Args:
        recording_of: The recording that each name means; updated.
    """
    agreeing: dict[str, dict[str, int]] = defaultdict(dict)
    for name, file in recording_of.items():
        folders = [part for part in re.split(r"[/\\]+", name) if part not in ("", ".")]
        if file is not None and len(folders) > 1:
            agreeing[file][name] = _n_shared_folders(file, folders)
    for by_name in agreeing.values():
        for name, n_shared in by_name.items():
            if n_shared < max(by_name.values()):
                recording_of[name] = None

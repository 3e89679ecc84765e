"""Commands of the job for benchmarks, with checkpoints of random weights, and the report of a run."""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from archive import Archive, first_recordings, make_archive, read_into_cache
from harness import Command, Measurement, measure
from tables import slopes
from weights import make_checkpoint, torch_home

WINDOW_S = 5.0


@dataclass(frozen=True)
class Workspace:
    """Folders for cached archives and weights (``cache``) and for outputs."""

    cache: Path
    outputs: Path

    @classmethod
    def of(cls, arguments: argparse.Namespace, name: str) -> "Workspace":
        outputs = Path(tempfile.gettempdir()) / "avex-batch-benchmarks-out" / name
        outputs.mkdir(parents=True, exist_ok=True)
        return cls(arguments.cache, outputs)

    def recordings(self, archive: Archive, n_files: int | None = None) -> Path:
        """Return the folder of an archive, or of its first ``n_files`` recordings, with all files in the file cache."""
        folder = make_archive(archive, self.cache)
        if n_files is not None and n_files < archive.n_files:
            folder = first_recordings(folder, n_files)
        read_into_cache(folder)
        return folder

    def embed_command(
        self, name: str, source: Path | str, model: str, *options: str, env: Mapping[str, str] | None = None
    ) -> Command:
        """Return the command that runs the job over ``source`` with further ``options`` of the job."""
        output = self.outputs / name.replace(" ", "-")
        argv = [
            *(sys.executable, "-m", "jobs.embed", "--input", str(source), "--output", str(output)),
            *("--model", model, "--checkpoint", str(make_checkpoint(model, self.cache)), "--window-s", str(WINDOW_S)),
            *options,
        ]
        return Command(name, argv, output, self.environment() | dict(env or {}))

    def environment(self) -> dict[str, str]:
        """Return the environment of every command: torch's cache, and a Ray that sends no usage statistics."""
        return {"TORCH_HOME": str(torch_home(self.cache)), "RAY_USAGE_STATS_ENABLED": "0"}


def last_run(output: Path) -> dict[str, Any]:
    """Return the last run of ``report.json``.

    Raises:
        RuntimeError: The run is not complete, or a recording failed.
    """
    report = json.loads((output / "report.json").read_text())
    if report["state"] != "complete" or report["recordings"]["failed"]:
        raise RuntimeError(f"{output.name}: the run ended as {report['state']}, failures: {report['failures']}")
    return report["runs"][-1]


@dataclass(frozen=True)
class ArchivePair:
    """Runs over a short and a long archive, whose difference is the cost of audio without the job's start and end.

    Attributes:
        name: Name of the pair.
        short: Command for the short archive.
        long: Command for the long archive.
        more_audio_s: Additional seconds of audio in the long archive.
    """

    name: str
    short: Command
    long: Command
    more_audio_s: float

    def tasks(self) -> dict[str, Callable[[], Measurement]]:
        return {command.name: lambda command=command: measure(command) for command in (self.short, self.long)}

    def times_real_time(self, results: Mapping[str, Sequence[Measurement]]) -> list[float]:
        """Return the additional audio per additional time, for each round."""
        short, long = ([run.wall_s for run in results[command.name]] for command in (self.short, self.long))
        return [1 / slope for slope in slopes(short, long, self.more_audio_s)]


def make_pair(
    workspace: Workspace, name: str, archive: Archive, n_short: int, command: Callable[[str, Path], Command]
) -> ArchivePair:
    """Return a pair of an archive and its first ``n_short`` recordings; ``command`` takes a name and a folder."""
    short = command(f"{name}, {n_short} files", workspace.recordings(archive, n_short))
    long = command(f"{name}, {archive.n_files} files", workspace.recordings(archive))
    return ArchivePair(name, short, long, (archive.n_files - n_short) * archive.file_s)

"""The job as the benchmarks run it: ``python -m jobs.embed`` with a checkpoint of ours; and what its report says."""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from archive import Archive, first, make, warm
from harness import Command, Measured, measure
from tables import slopes
from weights import checkpoint, torch_home

WINDOW_S = 5.0


@dataclass(frozen=True)
class Workplace:
    """Folders of archives, weights and outputs."""

    cache: Path
    outputs: Path

    @classmethod
    def of(cls, arguments: argparse.Namespace, name: str) -> "Workplace":
        outputs = Path(tempfile.gettempdir()) / "avex-batch-benchmarks-out" / name
        outputs.mkdir(parents=True, exist_ok=True)
        return cls(arguments.cache, outputs)

    def recordings(self, archive: Archive, n_files: int | None = None) -> Path:
        """The folder of an archive, or of its first recordings, in the file cache."""
        folder = make(archive, self.cache)
        if n_files is not None and n_files < archive.n_files:
            folder = first(folder, n_files)
        warm(folder)
        return folder

    def embed(
        self, name: str, source: Path | str, model: str, *options: str, env: Mapping[str, str] | None = None
    ) -> Command:
        """The job over ``source``; ``options`` are its own."""
        output = self.outputs / name.replace(" ", "-")
        argv = [
            *(sys.executable, "-m", "jobs.embed", "--input", str(source), "--output", str(output)),
            *("--model", model, "--checkpoint", str(checkpoint(model, self.cache)), "--window-s", str(WINDOW_S)),
            *options,
        ]
        return Command(name, argv, output, self.environment() | dict(env or {}))

    def environment(self) -> dict[str, str]:
        """Return the environment of all commands: torch's cache, and a Ray that sends nothing."""
        return {"TORCH_HOME": str(torch_home(self.cache)), "RAY_USAGE_STATS_ENABLED": "0"}


def last_run(output: Path) -> dict[str, Any]:
    """Figures of ``report.json``.

    Raises:
        RuntimeError: the run was not complete, or some recording failed.
    """
    report = json.loads((output / "report.json").read_text())
    if report["state"] != "complete" or report["recordings"]["failed"]:
        raise RuntimeError(f"{output.name}: the run ended as {report['state']}, failures: {report['failures']}")
    return report["runs"][-1]


@dataclass(frozen=True)
class Pair:
    """A short and a long archive: their difference is what audio takes, without the job's start and end."""

    name: str
    short: Command
    long: Command
    more_audio_s: float

    def tasks(self) -> dict[str, Callable[[], Measured]]:
        return {command.name: lambda command=command: measure(command) for command in (self.short, self.long)}

    def times_real_time(self, results: Mapping[str, Sequence[Measured]]) -> list[float]:
        """Return a figure of each round."""
        short, long = ([run.wall_s for run in results[each.name]] for each in (self.short, self.long))
        return [1 / slope for slope in slopes(short, long, self.more_audio_s)]


def pair(place: Workplace, name: str, archive: Archive, n_short: int, command: Callable[[str, Path], Command]) -> Pair:
    """An archive and its first ``n_short`` recordings; ``command`` makes the job of a name and a folder."""
    short = command(f"{name}, {n_short} files", place.recordings(archive, n_short))
    long = command(f"{name}, {archive.n_files} files", place.recordings(archive))
    return Pair(name, short, long, (archive.n_files - n_short) * archive.file_s)

"""2,000 damaged recordings of every format that libsndfile writes: each results in windows, a failure, or both.

A separate process decodes the recordings, so that a crash of libsndfile does not end pytest.
"""

import json
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.commands import ROOT
from tests.support.mutations import seeds, write_mutated

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux reports the peak memory of one program")

FILES_PER_TABLE = 50
# Kinds of docs/schema.md, without `io` (the storage does not fail) and `short` (tails are padded).
DECODE_KINDS = {"empty", "corrupt", "truncated", "nonfinite"}
WITHOUT_WINDOWS = {"empty", "corrupt"}
# A minute at 48 kHz, for seeds of at most 3 s at 96 kHz: damage may double the audio, but not make hours of it.
MOST_FRAMES = 60 * 48_000
PEAK_MB = 700  # the limit for every decode worker, as in test_bounded_memory.py


@dataclass(frozen=True)
class Outcome:
    """The outcome of one file; the fields are those of tests/support/decode_from_stdin.py."""

    file: str
    failures: list[tuple[str, str, str]]  # stage, kind, message
    index: list[int]
    finite: bool
    n_windows: int
    n_frames: int
    peak_mb: float

    @property
    def kind(self) -> str:
        """The text ``windows``, a kind of failure, or both, as in ``windows + truncated``."""
        return " + ".join([*(["windows"] if self.index else []), *(kind for _, kind, _ in self.failures)])

    def violations(self) -> list[str]:
        """Return the rules that the outcome violates."""
        kinds = [kind for _, kind, _ in self.failures]
        rules = {
            "neither windows nor a failure": not self.index and not kinds,
            "more than one failure": len(kinds) > 1,
            "a kind that is not documented": not DECODE_KINDS.issuperset(kinds),
            "windows, although nothing could be read": bool(self.index) and not WITHOUT_WINDOWS.isdisjoint(kinds),
            "a message of several lines": any("\n" in message for _, _, message in self.failures),
            "windows missing or out of order": self.index != list(range(self.n_windows)),
            "samples that are not finite": not self.finite,
            "audio that is not in the file": self.n_frames > MOST_FRAMES,
            "memory": self.peak_mb > PEAK_MB,
        }
        return [rule for rule, is_violated in rules.items() if is_violated]


def decode_isolated(files: list[str]) -> tuple[dict[str, Outcome], dict[str, str]]:
    """Decode ``files`` in a separate process; after its death, decode the rest in another process.

    Returns:
        The outcome of each file; and for each file that ended the process the signal (SIGALRM: decoding took too long)
        or the traceback.
    """
    outcomes: dict[str, Outcome] = {}
    deaths: dict[str, str] = {}
    while rest := [file for file in files if file not in outcomes and file not in deaths]:
        tables = [rest[start : start + FILES_PER_TABLE] for start in range(0, len(rest), FILES_PER_TABLE)]
        done = subprocess.run(
            [sys.executable, "-m", "tests.support.decode_from_stdin"],
            cwd=ROOT,
            input="".join(json.dumps(table) + "\n" for table in tables),
            capture_output=True,
            text=True,
            errors="replace",  # libsndfile and mpg123 quote the damaged bytes
            check=False,
        )
        begun = ""
        for line in map(json.loads, done.stdout.splitlines()):
            begun = line.get("begun", begun)
            if "file" in line:
                outcomes[line["file"]] = Outcome(**line)
        if done.returncode:
            assert begun, done.stderr
            deaths[begun] = signal.Signals(-done.returncode).name if done.returncode < 0 else done.stderr[-2_000:]
    return outcomes, deaths


def table_of_kinds(outcomes: dict[str, Outcome], container_of: dict[str, str]) -> str:
    """Return the outcomes of each format, a line per format."""
    counts = Counter((container_of[file], outcome.kind) for file, outcome in outcomes.items())
    kinds = sorted({kind for _, kind in counts})
    lines = ["".join(f"{word:>24}" for word in ["", *kinds])]
    for container in dict.fromkeys(container_of.values()):
        lines.append("".join(f"{word:>24}" for word in [container, *(counts[container, kind] for kind in kinds)]))
    return "\n".join(lines)


def test_intact_recordings_of_every_format_are_decoded_completely(tmp_path: Path) -> None:
    """The recordings are the seeds of the mutations below."""
    recordings = {str(seed.write(tmp_path / seed.name)): seed for seed in seeds(tmp_path / "seeds")}
    outcomes, deaths = decode_isolated(list(recordings))
    assert deaths == {}
    for file, seed in recordings.items():
        assert outcomes[file].kind == "windows", outcomes[file]
        # Block codecs pad the last block, and libsndfile counts the terminator of a VOC as a sample.
        assert 0 <= outcomes[file].n_frames - seed.n_frames < 2_048, outcomes[file]


@pytest.mark.parametrize("n", [2_000, pytest.param(20_000, marks=pytest.mark.long)])
def test_every_damaged_file_results_in_windows_or_a_failure(tmp_path: Path, n: int) -> None:
    container_of = {
        str(path): seed.container for path, seed in write_mutated(tmp_path / "mutated", seeds(tmp_path / "seeds"), n)
    }
    outcomes, deaths = decode_isolated(list(container_of))
    print(f"\n{table_of_kinds(outcomes, container_of)}")  # noqa: T201
    assert deaths == {}
    violations = {file: outcome.violations() for file, outcome in outcomes.items() if outcome.violations()}
    assert violations == {}
    assert len(outcomes) == n

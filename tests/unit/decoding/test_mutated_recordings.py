"""2,000 damaged recordings of every format libsndfile writes: each ends as windows, as a failure, or as both.

They are decoded in a process of its own, so that an end of libsndfile is not the end of pytest.
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

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="peak memory of this program alone is Linux's to tell")

FILES_PER_TABLE = 50
DECODE_KINDS = {"empty", "corrupt", "truncated", "nonfinite"}  # docs/schema.md; not io, and tails are padded here
WITHOUT_WINDOWS = {"empty", "corrupt"}
# A minute at 48 kHz, of seeds of at most 3 s at 96 kHz: damage doubles what there is, it does not make hours.
MOST_FRAMES = 60 * 48_000
PEAK_MB = 700  # what any decode worker may take: test_bounded_memory.py


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
        """``windows``, a kind of failure, or both, as in ``windows + truncated``."""
        return " + ".join([*(["windows"] if self.index else []), *(kind for _, kind, _ in self.failures)])

    def complaints(self) -> list[str]:
        """Return the faults of the outcome; there should be none."""
        kinds = [kind for _, kind, _ in self.failures]
        wrong = {
            "neither windows nor a failure": not self.index and not kinds,
            "more than one failure": len(kinds) > 1,
            "a kind that is not documented": not DECODE_KINDS.issuperset(kinds),
            "windows, although nothing could be read": bool(self.index) and not WITHOUT_WINDOWS.isdisjoint(kinds),
            "a message of several lines": any("\n" in message for _, _, message in self.failures),
            "windows missing or out of order": self.index != list(range(self.n_windows)),
            "samples that are no numbers": not self.finite,
            "audio that is not in the file": self.n_frames > MOST_FRAMES,
            "memory": self.peak_mb > PEAK_MB,
        }
        return [what for what, is_wrong in wrong.items() if is_wrong]


def decode_apart(files: list[str]) -> tuple[dict[str, Outcome], dict[str, str]]:
    """Decode ``files`` in a process of its own, and in another one each time it dies.

    Returns:
        outcomes by file, and of each file that ended the process the signal (SIGALRM: it took too long) or traceback.
    """
    outcomes: dict[str, Outcome] = {}
    deaths: dict[str, str] = {}
    while todo := [file for file in files if file not in outcomes and file not in deaths]:
        tables = [todo[at : at + FILES_PER_TABLE] for at in range(0, len(todo), FILES_PER_TABLE)]
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
        for said in map(json.loads, done.stdout.splitlines()):
            begun = said.get("begun", begun)
            if "file" in said:
                outcomes[said["file"]] = Outcome(**said)
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


def test_every_format_libsndfile_writes_is_read_whole(tmp_path: Path) -> None:
    """The seeds of the mutations below, intact."""
    recordings = {str(seed.write(tmp_path / seed.name)): seed for seed in seeds(tmp_path / "seeds")}
    outcomes, deaths = decode_apart(list(recordings))
    assert deaths == {}
    for file, seed in recordings.items():
        assert outcomes[file].kind == "windows", outcomes[file]
        # Block codecs pad the last block; libsndfile counts a VOC's terminator as a sample.
        assert 0 <= outcomes[file].n_frames - seed.n_frames < 2_048, outcomes[file]


@pytest.mark.parametrize("n", [2_000, pytest.param(20_000, marks=pytest.mark.long)])
def test_no_mutation_ends_in_anything_but_windows_and_a_failure(tmp_path: Path, n: int) -> None:
    container_of = {
        str(path): seed.container for path, seed in write_mutated(tmp_path / "mutated", seeds(tmp_path / "seeds"), n)
    }
    outcomes, deaths = decode_apart(list(container_of))
    print(f"\n{table_of_kinds(outcomes, container_of)}")  # noqa: T201
    assert deaths == {}
    complaints = {file: outcome.complaints() for file, outcome in outcomes.items() if outcome.complaints()}
    assert complaints == {}
    assert len(outcomes) == n

"""A job under random faults for a set time: the archive, the faults, and the record of what they caused."""

import io
import os
import random
import re
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import soundfile as sf

from tests.support.audio import tone
from tests.support.kills import WORKERS, Job, workers_of
from tests.support.models import EFFICIENTNET

RATE_HZ = 16_000
WINDOW_S = 0.5
OPTIONS = ("--model", EFFICIENTNET, "--checkpoint", "random", "--window-s", str(WINDOW_S))

# A run that stores no shard for so long, or does not end so soon after SIGTERM (30 s by its own rules), hangs.
STALL_S = 300.0
STOP_S = 60.0
# Memory and handles are taken as flat or not from here on: models are loaded, the first legs planned.
WARM_UP_S = 30.0
# … and up to here: at its end a driver reads back what is stored.
WIND_DOWN_S = 15.0
DAMAGED = re.compile(r"(/\S+\.parquet) is damaged")


class Archive:
    """Recordings of 1 to 3 windows, each a file of its own with one of a few thousand sounds.

    Attributes:
        sounds: WAV files, as bytes.
        contents: index into ``sounds`` by path, of every recording that is there now.
        removed: paths that were there before.
    """

    def __init__(self, folder: Path, n_recordings: int, n_sounds: int, rng: random.Random) -> None:
        self.folder, self._rng = folder, rng
        self.sounds = [_sound(seed) for seed in range(n_sounds)]
        self.contents: dict[Path, int] = {}
        self.removed: list[Path] = []
        self._n_named = 0
        for _ in range(n_recordings):
            self._write(self._new_path())

    def n_windows(self, sound: int) -> int:
        return sound % 3 + 1

    def touch(self, path: Path) -> None:
        path.touch()

    def change(self, path: Path) -> None:
        """Give a recording another sound, half of the time in place, so that a reader may meet a part of it."""
        if self._rng.random() < 0.5:
            path.write_bytes(self._draw(path))
        else:
            self._write(path)

    def remove(self, path: Path) -> None:
        path.unlink()
        del self.contents[path]
        self.removed.append(path)

    def add(self, _: Path) -> None:
        """Add a recording: half of the time one that was removed before, with another sound."""
        if self.removed and self._rng.random() < 0.5:
            self._write(self.removed.pop(self._rng.randrange(len(self.removed))))
        else:
            self._write(self._new_path())

    def _new_path(self) -> Path:
        self._n_named += 1
        return self.folder / f"{self._n_named // 1000:03d}" / f"{self._n_named:06d}.wav"

    def _draw(self, path: Path) -> bytes:
        sound = self._rng.randrange(len(self.sounds))
        self.contents[path] = sound
        return self.sounds[sound]

    def _write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(".new")
        beside.write_bytes(self._draw(path))
        beside.replace(path)


def _sound(seed: int) -> bytes:
    content = io.BytesIO()
    audio = tone(WINDOW_S * (seed % 3 + 1), RATE_HZ, 200 + seed, seed=seed)
    sf.write(content, audio, RATE_HZ, format="wav", subtype="PCM_U8")
    return content.getvalue()


@dataclass(frozen=True)
class Sample:
    """Memory and handles of a driver."""

    at_s: float
    rss_bytes: int
    n_handles: int


@dataclass
class Record:
    """Counts of a soak."""

    tries: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    hangs: list[str] = field(default_factory=list)
    tracebacks: list[str] = field(default_factory=list)
    unexplained: list[str] = field(default_factory=list)  # ends without one line that says why
    samples: list[list[Sample]] = field(default_factory=list)  # by try

    def end(self, code: int, lines: list[str]) -> None:
        """Take note of the end of a try: its exit code, and what the driver printed."""
        said = "".join(lines)
        last = lines[-1].strip() if lines else ""
        if "Traceback" in said:
            self.tracebacks.append(said)
        if code < 0:
            self.ends[f"killed by {signal.Signals(-code).name}"] += 1
            return
        if code > 0 and not last.startswith("avex-batch: "):
            self.unexplained.append(said)
        reason = re.sub(r"\S*/\S*|\d[\d,]*", "…", last.removeprefix("avex-batch: ")) if code else "complete"
        self.ends[f"exit code {code}: {reason}"] += 1

    def slopes(self, least_s: float) -> list[tuple[float, float, float]]:
        """Fit a line through the samples of each try that has enough of them.

        Args:
            least_s: seconds of samples after the warm-up.

        Returns:
            Seconds that were sampled, bytes of memory a second, handles a second.
        """
        found = []
        for samples in self.samples:
            until_s = samples[-1].at_s - WIND_DOWN_S if samples else 0.0
            steady = [each for each in samples if WARM_UP_S <= each.at_s <= until_s]
            rows = [(each.at_s, each.rss_bytes, each.n_handles) for each in steady]
            if rows and rows[-1][0] - rows[0][0] >= least_s:
                at_s, rss_bytes, n_handles = np.array(rows, float).T
                slopes = (float(np.polyfit(at_s, values, 1)[0]) for values in (rss_bytes, n_handles))
                found.append((at_s[-1] - at_s[0], *slopes))
        return found


class Try:
    """One start of the job: its process, its lines, and samples of the driver."""

    def __init__(self, job: Job, process: subprocess.Popen[str], record: Record) -> None:
        self._job, self._record = job, record
        self.process = process
        self.lines: list[str] = []
        self._begun_s = time.time()
        self._samples: list[Sample] = []
        self._n_shards = len(job.shards())
        self._first_shard_s: float | None = None
        record.samples.append(self._samples)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def age_s(self) -> float:
        """Seconds since the start."""
        return time.time() - self._begun_s

    @property
    def storing_s(self) -> float:
        """Seconds since the first shard of this try."""
        return 0.0 if self._first_shard_s is None else time.time() - self._first_shard_s

    def _read(self) -> None:
        self.lines.extend(self.process.stdout or ())

    def lasts(self, seconds: float) -> bool:
        """Wait so long, and sample meanwhile; true if the process runs on, false if it has ended or hangs."""
        until_s = time.monotonic() + seconds
        while time.monotonic() < until_s:
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(min(1.0, max(0.01, until_s - time.monotonic())))
                return False
            self._sample()
            if self._stalled_s() > STALL_S:
                self.hang(f"no shard for {STALL_S:.0f} s")
                return False
        return True

    def _sample(self) -> None:
        n_shards = len(self._job.shards())
        if self._first_shard_s is None:
            if n_shards == self._n_shards:
                return
            self._first_shard_s = time.time()
        with suppress(psutil.Error):
            driver = psutil.Process(self.process.pid)
            at_s = time.time() - self._first_shard_s
            self._samples.append(Sample(at_s, driver.memory_info().rss, driver.num_fds()))

    def _stalled_s(self) -> float:
        stored_s = self._begun_s
        with suppress(FileNotFoundError):  # a shard that is settled away meanwhile
            stored_s = max(stored_s, *(shard.stat().st_mtime for shard in self._job.shards()), 0.0)
        return time.time() - stored_s

    def hang(self, why: str) -> None:
        """Take note of a hang, with the stacks of all threads, and end the process."""
        self.process.send_signal(signal.SIGABRT)  # which faulthandler answers
        self.process.wait(60)
        self._reader.join(60)
        self._record.hangs.append(why + "\n" + "".join(self.lines[-80:]))

    def end(self) -> None:
        """Wait for the process, which has been asked to end, or is expected to."""
        if self.process.poll() is None and self.lasts(STOP_S):
            self.hang(f"not ended after {STOP_S:.0f} s")
        self._reader.join(60)
        self._record.end(self.process.returncode, self.lines)
        # The remedy that docs/operations.md names.
        for shard in DAMAGED.findall("".join(self.lines[-3:])):
            Path(shard).unlink(missing_ok=True)
            self._record.faults["damaged shard deleted, as the message says"] += 1


@contextmanager
def trying(job: Job, record: Record) -> Iterator[Try]:
    """Start the job once more; the block lets it end."""
    record.tries += 1
    with job.running() as process:
        attempt = Try(job, process, record)
        yield attempt
        attempt.end()


@contextmanager
def full(disk: Path) -> Iterator[None]:
    """A disk without a free byte while the block runs."""
    filler = disk / "filler"
    with filler.open("wb") as file:
        length, step = 0, 1 << 26
        while step >= 4096:
            try:
                os.posix_fallocate(file.fileno(), length, step)
                length += step
            except OSError:
                step //= 2
        try:
            yield
        finally:
            filler.unlink()


# By how likely each is the next.
DISTURBANCES = {"kill": 10, "touch": 2, "change": 2, "remove": 1, "add": 2, "delete shard": 0.4, "cut shard": 0.4}
ENDS = {"SIGKILL": 4, "SIGTERM": 2, "full disk": 2, "none": 2}


@dataclass
class Soak:
    """Random faults on a job, its archive and its output, which has ``disk`` for itself."""

    job: Job
    archive: Archive
    disk: Path
    length_s: float
    rng: random.Random
    record: Record = field(default_factory=Record)

    def run(self) -> None:
        """Start the job again and again, and let it end by a fault, until the time is over."""
        until_s = time.monotonic() + self.length_s
        while time.monotonic() < until_s:
            with trying(self.job, self.record) as attempt:
                # Some tries end while they start; most do only after they have stored something.
                is_early = self.rng.random() < 0.2
                life_s = self.rng.uniform(0.05, 1) * min(180.0, self.length_s / 6)
                while time.monotonic() < until_s and (attempt.age_s if is_early else attempt.storing_s) < life_s:
                    if not attempt.lasts(self.rng.uniform(0.5, min(8.0, self.length_s / 60))):
                        break
                    self._disturb(attempt)
                if attempt.process.poll() is None:
                    self._end(attempt)

    def finish(self) -> None:
        """Run the same command, undisturbed, until it is complete."""
        said: list[str] = []
        for _ in range(1 + self.record.faults["cut shard"]):  # each of which is refused by its name once
            with trying(self.job, self.record) as attempt:
                while attempt.lasts(10.0):
                    pass
            if attempt.process.returncode == 0:
                return
            said += attempt.lines
        raise AssertionError("not complete undisturbed: " + "".join(said))

    def _disturb(self, attempt: Try) -> None:
        name = self._draw(DISTURBANCES)
        if name == "kill":
            self._kill(attempt)
        elif name in ("delete shard", "cut shard"):
            self._damage(name)
        else:
            paths = self.rng.sample(list(self.archive.contents), max(2, len(self.archive.contents) // 1000))
            for path in paths:
                getattr(self.archive, name)(path)
            self.record.faults[f"{name} recordings"] += len(paths)

    def _kill(self, attempt: Try) -> None:
        name = self._draw({name: worker.weight for name, worker in WORKERS.items()})
        if victims := workers_of(attempt.process).get(name):
            with suppress(psutil.NoSuchProcess):
                self.rng.choice(victims).kill()
                self.record.faults[f"SIGKILL of a {name}"] += 1

    def _damage(self, name: str) -> None:
        if not (shards := self.job.shards()):
            return
        shard = self.rng.choice(shards)
        with suppress(FileNotFoundError):  # settled away meanwhile
            if name == "delete shard":
                shard.unlink()
            else:
                os.truncate(shard, shard.stat().st_size // 2)
            self.record.faults[name] += 1

    def _end(self, attempt: Try) -> None:
        name = self._draw(ENDS)
        if name == "none":
            return
        self.record.faults[name if name == "full disk" else f"{name} of the driver"] += 1
        if name == "full disk":
            with full(self.disk):
                attempt.lasts(self.rng.uniform(5, 30))
            attempt.process.terminate()
        elif name == "SIGTERM":
            attempt.process.terminate()
        else:
            attempt.process.kill()

    def _draw(self, weights: Mapping[str, float]) -> str:
        return self.rng.choices(list(weights), list(weights.values()))[0]

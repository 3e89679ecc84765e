"""A job under random faults for a set time: the archive, the faults, and a record of their effects."""

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
from tests.support.kills import WORKER_KINDS, Job, workers_of
from tests.support.models import EFFICIENTNET

RATE_HZ = 16_000
WINDOW_S = 0.5
OPTIONS = ("--model", EFFICIENTNET, "--checkpoint", "random", "--window-s", str(WINDOW_S))

# A run hangs if it stores no shard for STALL_S, or does not end within STOP_S after SIGTERM. Its own limit is 30 s.
STALL_S = 300.0
STOP_S = 60.0
# Memory and handles are judged only after WARM_UP_S, when the models are loaded and the first legs are planned, and
# until WIND_DOWN_S before the end, when the driver reads back the output.
WARM_UP_S = 30.0
WIND_DOWN_S = 15.0
DAMAGED = re.compile(r"(/\S+\.parquet) is damaged")


class Archive:
    """Recordings of 1 to 3 windows. Each recording has one of a few thousand sounds.

    Attributes:
        sounds: WAV files, as bytes.
        contents: Index into ``sounds`` of each present recording, by path.
        removed: Paths of removed recordings.
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
        """Return the number of windows of a sound."""
        return sound % 3 + 1

    def touch(self, path: Path) -> None:
        path.touch()

    def change(self, path: Path) -> None:
        """Give a recording another sound; half of the changes are in place, so a reader may see a part of the file."""
        if self._rng.random() < 0.5:
            path.write_bytes(self._draw(path))
        else:
            self._write(path)

    def remove(self, path: Path) -> None:
        path.unlink()
        del self.contents[path]
        self.removed.append(path)

    def add(self, _: Path) -> None:
        """Add a recording; half of the time at the path of a removed recording, with another sound."""
        if self.removed and self._rng.random() < 0.5:
            self._write(self.removed.pop(self._rng.randrange(len(self.removed))))
        else:
            self._write(self._new_path())

    def _new_path(self) -> Path:
        self._n_named += 1
        return self.folder / f"{self._n_named // 1000:03d}" / f"{self._n_named:06d}.wav"

    def _draw(self, path: Path) -> bytes:
        """Choose a sound for a recording at random."""
        sound = self._rng.randrange(len(self.sounds))
        self.contents[path] = sound
        return self.sounds[sound]

    def _write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(".new")
        new.write_bytes(self._draw(path))
        new.replace(path)


def _sound(seed: int) -> bytes:
    content = io.BytesIO()
    audio = tone(WINDOW_S * (seed % 3 + 1), RATE_HZ, 200 + seed, seed=seed)
    sf.write(content, audio, RATE_HZ, format="wav", subtype="PCM_U8")
    return content.getvalue()


@dataclass(frozen=True)
class Sample:
    """Memory and handles of a driver, ``at_s`` seconds after the first shard of an attempt."""

    at_s: float
    rss_bytes: int
    n_handles: int


@dataclass
class Record:
    """Counts of a soak.

    Attributes:
        n_attempts: Starts of the job.
        faults: Number of faults of each kind.
        ends: Number of attempts that ended for each reason.
        hangs: The reason of each hang, with the last lines of the driver.
        tracebacks: The output of each driver that printed a traceback.
        unexplained: The output of each driver that ended without a line with the reason.
        samples: Memory and handles of the driver in each attempt.
    """

    n_attempts: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    hangs: list[str] = field(default_factory=list)
    tracebacks: list[str] = field(default_factory=list)
    unexplained: list[str] = field(default_factory=list)
    samples: list[list[Sample]] = field(default_factory=list)

    def end(self, code: int, lines: list[str]) -> None:
        """Record the end of an attempt, from its exit code and the lines of the driver."""
        printed = "".join(lines)
        last = lines[-1].strip() if lines else ""
        if "Traceback" in printed:
            self.tracebacks.append(printed)
        if code < 0:
            self.ends[f"killed by {signal.Signals(-code).name}"] += 1
            return
        if code > 0 and not last.startswith("avex-batch: "):
            self.unexplained.append(printed)
        reason = re.sub(r"\S*/\S*|\d[\d,]*", "…", last.removeprefix("avex-batch: ")) if code else "complete"
        self.ends[f"exit code {code}: {reason}"] += 1

    def slopes(self, least_s: float) -> list[tuple[float, float, float]]:
        """Fit a line to the samples of each attempt that lasted long enough.

        Args:
            least_s: Least seconds of samples after the warm-up.

        Returns:
            Sampled seconds, growth of memory in bytes a second, growth of handles a second, for each attempt.
        """
        slopes_by_attempt = []
        for samples in self.samples:
            until_s = samples[-1].at_s - WIND_DOWN_S if samples else 0.0
            steady = [sample for sample in samples if WARM_UP_S <= sample.at_s <= until_s]
            rows = [(sample.at_s, sample.rss_bytes, sample.n_handles) for sample in steady]
            if rows and rows[-1][0] - rows[0][0] >= least_s:
                at_s, rss_bytes, n_handles = np.array(rows, float).T
                slopes = (float(np.polyfit(at_s, values, 1)[0]) for values in (rss_bytes, n_handles))
                slopes_by_attempt.append((at_s[-1] - at_s[0], *slopes))
        return slopes_by_attempt


class Attempt:
    """One start of the job: its process, its output, and samples of the driver."""

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
        """Seconds since the first shard of this attempt."""
        return 0.0 if self._first_shard_s is None else time.time() - self._first_shard_s

    def _read(self) -> None:
        self.lines.extend(self.process.stdout or ())

    def is_running_after(self, seconds: float) -> bool:
        """Wait and take samples; return true if the process is still running, false if it has ended or hangs."""
        until_s = time.monotonic() + seconds
        while time.monotonic() < until_s:
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(min(1.0, max(0.01, until_s - time.monotonic())))
                return False
            self._sample()
            if self._stalled_s() > STALL_S:
                self.record_hang(f"no shard for {STALL_S:.0f} s")
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
        with suppress(FileNotFoundError):  # repair has removed a shard in the meantime
            stored_s = max(stored_s, *(shard.stat().st_mtime for shard in self._job.shards()), 0.0)
        return time.time() - stored_s

    def record_hang(self, reason: str) -> None:
        """Record a hang with the stacks of all threads, and end the process."""
        self.process.send_signal(signal.SIGABRT)  # faulthandler then prints the stacks
        self.process.wait(60)
        self._reader.join(60)
        self._record.hangs.append(reason + "\n" + "".join(self.lines[-80:]))

    def end(self) -> None:
        """Wait for the end of a process that was stopped or is nearly finished, and record the end."""
        if self.process.poll() is None and self.is_running_after(STOP_S):
            self.record_hang(f"not ended after {STOP_S:.0f} s")
        self._reader.join(60)
        self._record.end(self.process.returncode, self.lines)
        # This is the remedy in docs/operations.md.
        for shard in DAMAGED.findall("".join(self.lines[-3:])):
            Path(shard).unlink(missing_ok=True)
            self._record.faults["damaged shard deleted, as the message says"] += 1


@contextmanager
def start_attempt(job: Job, record: Record) -> Iterator[Attempt]:
    """Start the job; the block has to bring about its end."""
    record.n_attempts += 1
    with job.running() as process:
        attempt = Attempt(job, process, record)
        yield attempt
        attempt.end()


@contextmanager
def full_disk(disk: Path) -> Iterator[None]:
    """Fill a disk to the last byte while the block runs."""
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


# Relative chance of each fault during an attempt, and of each end of an attempt.
DISTURBANCES = {"kill": 10, "touch": 2, "change": 2, "remove": 1, "add": 2, "delete shard": 0.4, "cut shard": 0.4}
ENDS = {"SIGKILL": 4, "SIGTERM": 2, "full disk": 2, "none": 2}


@dataclass
class Soak:
    """Random faults on a job, its archive and its output; only the output is on ``disk``."""

    job: Job
    archive: Archive
    disk: Path
    length_s: float
    rng: random.Random
    record: Record = field(default_factory=Record)

    def run(self) -> None:
        """Start the job again and again, and end it by a fault, until the time is over."""
        until_s = time.monotonic() + self.length_s
        while time.monotonic() < until_s:
            with start_attempt(self.job, self.record) as attempt:
                # Some attempts end during the start; most attempts end only after they have stored a shard.
                is_early = self.rng.random() < 0.2
                life_s = self.rng.uniform(0.05, 1) * min(180.0, self.length_s / 6)
                while time.monotonic() < until_s and (attempt.age_s if is_early else attempt.storing_s) < life_s:
                    if not attempt.is_running_after(self.rng.uniform(0.5, min(8.0, self.length_s / 60))):
                        break
                    self._disturb(attempt)
                if attempt.process.poll() is None:
                    self._end(attempt)

    def finish(self) -> None:
        """Run the same command without faults until it is complete."""
        lines: list[str] = []
        for _ in range(1 + self.record.faults["cut shard"]):  # each cut shard ends one run with a message
            with start_attempt(self.job, self.record) as attempt:
                while attempt.is_running_after(10.0):
                    pass
            if attempt.process.returncode == 0:
                return
            lines += attempt.lines
        raise AssertionError("not complete without faults: " + "".join(lines))

    def _disturb(self, attempt: Attempt) -> None:
        name = self._choose(DISTURBANCES)
        if name == "kill":
            self._kill(attempt)
        elif name in ("delete shard", "cut shard"):
            self._damage(name)
        else:
            paths = self.rng.sample(list(self.archive.contents), max(2, len(self.archive.contents) // 1000))
            for path in paths:
                getattr(self.archive, name)(path)
            self.record.faults[f"{name} recordings"] += len(paths)

    def _kill(self, attempt: Attempt) -> None:
        name = self._choose({name: worker.weight for name, worker in WORKER_KINDS.items()})
        if victims := workers_of(attempt.process).get(name):
            with suppress(psutil.NoSuchProcess):
                self.rng.choice(victims).kill()
                self.record.faults[f"SIGKILL of a {name}"] += 1

    def _damage(self, name: str) -> None:
        if not (shards := self.job.shards()):
            return
        shard = self.rng.choice(shards)
        with suppress(FileNotFoundError):  # repair has removed the shard in the meantime
            if name == "delete shard":
                shard.unlink()
            else:
                os.truncate(shard, shard.stat().st_size // 2)
            self.record.faults[name] += 1

    def _end(self, attempt: Attempt) -> None:
        name = self._choose(ENDS)
        if name == "none":
            return
        self.record.faults[name if name == "full disk" else f"{name} of the driver"] += 1
        if name == "full disk":
            with full_disk(self.disk):
                attempt.is_running_after(self.rng.uniform(5, 30))
            attempt.process.terminate()
        elif name == "SIGTERM":
            attempt.process.terminate()
        else:
            attempt.process.kill()

    def _choose(self, weights: Mapping[str, float]) -> str:
        return self.rng.choices(list(weights), list(weights.values()))[0]

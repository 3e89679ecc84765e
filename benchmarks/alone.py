"""One stage of the job alone, without Ray: the encoder on windows in memory, or decoding; in several processes at once.

``python benchmarks/alone.py encode|reference|decode JSON`` is one of these processes: it says ``ready``, waits for a
line, works for as many seconds as it is told, and says what it did.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from archive import Archive
from harness import ROOT, CommandError
from job import WINDOW_S, Workplace
from weights import checkpoint

# Different windows, so that caches hold what they hold in the job; a pass over them bounds how short a measurement is.
N_WINDOWS = {"cpu": 32, "cuda": 512}
SOURCE = Archive("flac", 48_000, 6, 60.0)


def encode_rate(
    place: Workplace,
    model: str,
    precision: str,
    *,
    processes: int,
    threads: int,
    seconds: float,
    device: str = "cpu",
    window_s: float = WINDOW_S,
    stage: str = "encode",
) -> float:
    """Windows per second of the job's encoder."""
    task = {
        "model": model,
        "precision": precision,
        "checkpoint": str(checkpoint(model, place.cache)),
        "folder": str(place.recordings(SOURCE)),
        "threads": threads,
        "device": device,
        "seconds": seconds,
        "window_s": window_s,
    }
    done = _together(stage, [task] * processes, place.environment())
    return sum(each["windows"] / each["seconds"] for each in done)


# Windows per second of avex used plainly, one window at a time; the arguments are the same.
reference_rate = partial(encode_rate, stage="reference")


def decode_rate(place: Workplace, folder: Path, model: str, *, processes: int, seconds: float) -> float:
    """Seconds of audio per second of the job's decoding, to windows of ``model``."""
    tasks = [
        {
            "model": model,
            "folder": str(folder),
            "share": [number, processes],
            "seconds": seconds,
        }
        for number in range(processes)
    ]
    done = _together("decode", tasks, place.environment())
    return sum(each["audio_s"] / each["seconds"] for each in done)


def both(encode_x: float, decode_x: float) -> float:
    """× real time of a machine whose cores do both, each at its own rate with all of them."""
    return 1 / (1 / encode_x + 1 / decode_x)


def _together(stage: str, tasks: Sequence[dict[str, Any]], env: Mapping[str, str]) -> list[dict[str, float]]:
    """Start a process per task; all begin at the same moment."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | dict(env)
    with ExitStack() as stack:
        said = stack.enter_context(tempfile.TemporaryFile("w+", errors="replace"))
        workers = []
        for task in tasks:
            worker = subprocess.Popen(
                [sys.executable, __file__, stage, json.dumps(task)],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
            )
            stack.callback(worker.wait)
            stack.callback(worker.kill)
            workers.append(worker)
        try:
            for worker in workers:
                _answer(worker)
            for worker in workers:
                assert worker.stdin is not None
                worker.stdin.write("go\n")
                worker.stdin.flush()
            return [json.loads(_answer(worker)) for worker in workers]
        except EOFError as error:
            said.seek(0)
            raise CommandError(f"{stage} alone failed:\n{said.read()}") from error


def _answer(worker: subprocess.Popen[str]) -> str:
    assert worker.stdout is not None
    for line in worker.stdout:
        if line.startswith(("ready", "{")):  # avex prints what it likes
            return line
    raise EOFError


# --- in the process itself --------------------------------------------------------------------------------------


def encode(task: Mapping[str, Any]) -> dict[str, float]:
    import numpy as np

    from embedding.encoding.encoder import Encoder

    settings = settings_of(task)
    encoder = Encoder(settings, task["device"], task["threads"])
    windows = _windows(task, settings.windows)
    n_audio = np.full(len(windows), settings.windows.length)
    encoder.encode(windows, n_audio)  # calibrates, allocates
    return _repeat(task["seconds"], len(windows), lambda: encoder.encode(windows, n_audio))


def reference(task: Mapping[str, Any]) -> dict[str, float]:
    """As ``peers/reference_loop.py`` embeds."""
    import torch

    from peers.common import embed, load_model

    windows = _windows(task, settings_of(task).windows)
    model = load_model(task["model"], Path(task["checkpoint"]), task["device"])

    def loop() -> None:
        for window in windows:
            embed(model, torch.from_numpy(window)[None].to(task["device"]), task["precision"]).cpu().numpy()

    loop()
    return _repeat(task["seconds"], len(windows), loop)


def _windows(task: Mapping[str, Any], spec: Any) -> Any:
    """``[n, length]``, of a few recordings again and again."""
    import numpy as np

    from embedding.decoding.windows import cut

    found: list[Any] = []
    for path in sorted(path for path in Path(task["folder"]).rglob("*") if path.is_file()):
        for several in cut(_blocks(path, spec.rate_hz), spec):
            found.extend(several)
    n = N_WINDOWS[task["device"]]
    return np.stack((found * -(-n // len(found)))[:n])


def _repeat(seconds: float, n_windows: int, work: Callable[[], object]) -> dict[str, float]:
    began = _go()
    n = 0
    while time.perf_counter() - began < seconds:
        work()
        n += n_windows
    return {"windows": n, "seconds": time.perf_counter() - began}


def _blocks(path: Path, rate_hz: int) -> Iterator[Any]:
    from embedding.decoding.audio import open_recording

    with open_recording(str(path)) as recording:
        for (block,) in recording.blocks(rate_hz):
            yield block


def decode(task: Mapping[str, Any]) -> dict[str, float]:
    import pyarrow as pa

    from embedding.decoding.decode import Observer
    from embedding.decoding.decode import decode as to_windows
    from embedding.listing.sources import list_recordings
    from embedding.scheduling.sizes import least_batch

    class Count(Observer):
        audio_s = 0.0

        def decoded(self, audio_s: float, n_bytes: int) -> None:
            self.audio_s += audio_s

        def failed(self, failure: Any, wanted: int) -> None:
            raise AssertionError(failure)

    settings = settings_of(dict(task) | {"checkpoint": "random", "precision": "fp32"})
    windows, size = settings.windows, least_batch("cpu", settings.model.architecture)
    number, of = task["share"]
    recordings = list_recordings([task["folder"]]).recordings
    recordings = recordings.take(pa.array(range(number, len(recordings), of)))
    count = Count()
    began = _go()
    while time.perf_counter() - began < task["seconds"]:
        for table in to_windows(recordings, [windows], size, count):
            del table
    return {"audio_s": count.audio_s, "seconds": time.perf_counter() - began}


def settings_of(task: Mapping[str, Any]) -> Any:
    from embedding.config import EmbedConfig
    from embedding.settings import Settings

    return Settings.of(
        EmbedConfig(
            input=(),
            output="",
            model=(task["model"],),
            checkpoint=(task["checkpoint"],),
            window_s=task.get("window_s", WINDOW_S),
            precision=task["precision"],
        )
    )


def _go() -> float:
    _say("ready")
    sys.stdin.readline()
    return time.perf_counter()


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> int:
    stage, task = {"encode": encode, "reference": reference, "decode": decode}[sys.argv[1]], json.loads(sys.argv[2])
    _say(json.dumps(stage(task)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

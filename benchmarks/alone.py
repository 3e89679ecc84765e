"""One stage of the job alone, without Ray, in several processes: the encoder on windows in memory, or decoding.

``python benchmarks/alone.py encode|reference|decode JSON`` is one of the processes: it prints ``ready``, waits for a
line, works for the number of seconds in the JSON, and prints its result.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from archive import Archive
from harness import ROOT, CommandError
from job import WINDOW_S, Workspace
from weights import make_checkpoint

# Number of different windows by device: enough that caches behave as in the job, but not more, because a measurement
# takes at least one pass over all windows.
N_WINDOWS = {"cpu": 32, "simulated": 4, "cuda": 512}
# Batch size of a DataLoader loop on a GPU.
LOADER_BATCH = 64
SOURCE = Archive("flac", 48_000, 6, 60.0)


def encode_rate(
    workspace: Workspace,
    model: str,
    precision: str,
    *,
    processes: int,
    threads: int,
    seconds: float,
    device: str = "cpu",
    window_s: float = WINDOW_S,
    stage: str = "encode",
    without: Sequence[str] = (),
    with_: Sequence[str] = (),
) -> float:
    """Return windows per second of the job's encoder; ``without`` and ``with_`` remove and add some of PARTS."""
    task = _task(workspace, model, precision, threads, device, seconds, window_s, without, with_)
    results = _run_together(stage, [task] * processes, workspace.environment())
    return sum(result["windows"] / result["seconds"] for result in results)


def _task(  # noqa: PLR0917 — the fields of the JSON, for two callers
    workspace: Workspace,
    model: str,
    precision: str,
    threads: int,
    device: str,
    seconds: float,
    window_s: float,
    without: Sequence[str],
    with_: Sequence[str],
) -> dict[str, Any]:
    return {
        "model": model,
        "precision": precision,
        "checkpoint": str(make_checkpoint(model, workspace.cache)),
        "folder": str(workspace.recordings(SOURCE)),
        "threads": threads,
        "device": device,
        "seconds": seconds,
        "window_s": window_s,
        "without": list(without),
        "with": list(with_),
    }


# Parts of the encoder that can be removed or added: benchmarks/gpu.py, case ``parts``.
PARTS = ("overlap", "copy queue", "fused bias", "compile")
N_COMPARED = 32


def compare_with_reference(
    workspace: Workspace, model: str, precision: str, *, device: str, window_s: float, with_: Sequence[str] = ()
) -> dict[str, float]:
    """Return the largest relative ``error`` and the smallest ``cosine`` of the encoder against the reference loop."""
    task = _task(workspace, model, precision, 1, device, 0.0, window_s, (), with_)
    (result,) = _run_together("vectors", [task], workspace.environment())
    return result


# Windows per second of plain avex, one window at a time; same arguments as ``encode_rate``.
reference_rate = partial(encode_rate, stage="reference")
# Windows per second of plain avex with batches of a DataLoader.
loader_rate = partial(encode_rate, stage="loader")


def decode_rate(workspace: Workspace, folder: Path, model: str, *, processes: int, seconds: float) -> float:
    """Return seconds of audio per second of the job's decoding to windows of ``model``."""
    tasks = [
        {
            "model": model,
            "folder": str(folder),
            "share": [number, processes],
            "seconds": seconds,
        }
        for number in range(processes)
    ]
    results = _run_together("decode", tasks, workspace.environment())
    return sum(result["audio_s"] / result["seconds"] for result in results)


def combined_rate(encode_x: float, decode_x: float) -> float:
    """Return × real time of decoding and encoding one after the other on all cores, from the rates of both."""
    return 1 / (1 / encode_x + 1 / decode_x)


def _run_together(stage: str, tasks: Sequence[dict[str, Any]], env: Mapping[str, str]) -> list[dict[str, float]]:
    """Start a process per task, and let all processes begin at the same time; return their results."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | dict(env)
    with ExitStack() as stack:
        errors = stack.enter_context(tempfile.TemporaryFile("w+", errors="replace"))
        workers = []
        for task in tasks:
            worker = subprocess.Popen(
                [sys.executable, __file__, stage, json.dumps(task)],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
            stack.callback(worker.wait)
            stack.callback(worker.kill)
            workers.append(worker)
        try:
            for worker in workers:
                _read_answer(worker)
            for worker in workers:
                assert worker.stdin is not None
                worker.stdin.write("go\n")
                worker.stdin.flush()
            return [json.loads(_read_answer(worker)) for worker in workers]
        except EOFError as error:
            errors.seek(0)
            raise CommandError(f"{stage} alone failed:\n{errors.read()}") from error


def _read_answer(worker: subprocess.Popen[str]) -> str:
    assert worker.stdout is not None
    for line in worker.stdout:
        if line.startswith(("ready", "{")):  # avex also prints to stdout
            return line
    raise EOFError


# --- in the process itself --------------------------------------------------------------------------------------


def encode(task: Mapping[str, Any]) -> dict[str, float]:
    import numpy as np

    from embedding.planning.placement import CALLS_ON_GPU

    encoder = encoder_of(task)
    windows = _windows(task, encoder.settings.windows)
    n_audio = np.full(len(windows), encoder.settings.windows.length)
    encoder.warm_up(len(windows))
    if task["device"] == "cpu":
        while encoder._search.measured_next is not None:  # measured with the first windows, and kept for the next start
            encoder.encode(windows, n_audio)
    size, n_calls = len(windows), 1 if task["device"] == "cpu" else CALLS_ON_GPU
    if "overlap" in task["without"]:  # each call is one pass, and waits for its end
        size, n_calls = encoder._micro_batch.size, 1

    def work() -> None:
        for at in range(0, len(windows), size):
            encoder.encode(windows[at : at + size], n_audio[at : at + size])

    return _repeat(task["seconds"], len(windows), work, n_threads=n_calls)


def encoder_of(task: Mapping[str, Any]) -> Any:
    """Load the job's encoder, with and without some of PARTS."""
    if task["device"] == "cpu":
        from embedding.encoding.encoder_loading import load_encoders

        return load_encoders([settings_of(task)], task["threads"])[0]
    import torch

    from embedding.encoding.devices import Cuda
    from embedding.encoding.encoder import Encoder

    if task["device"] == "simulated":
        from simulated_gpu import SimulatedGpu

        device = SimulatedGpu()
    else:
        device = Cuda([task["precision"]])
    encoder = Encoder(settings_of(task), device, task["threads"], fused_bias="fused bias" in task["with"])
    if "copy queue" in task["without"]:
        encoder._staging._queue = encoder._return_queue = encoder._compute_queue
    if "compile" in task["with"]:
        encoder._network = torch.compile(encoder._network, dynamic=False)  # type: ignore[assignment]
    return encoder


def reference(task: Mapping[str, Any]) -> dict[str, float]:
    """Embed like ``peers/reference_loop.py``."""
    import torch

    from peers.common import embed, load_model

    windows, device = _windows(task, settings_of(task).windows), _torch_device(task)
    model = load_model(task["model"], Path(task["checkpoint"]), device)

    def loop() -> None:
        for window in windows:
            embed(model, torch.from_numpy(window)[None].to(device), task["precision"]).cpu().numpy()

    loop()
    return _repeat(task["seconds"], len(windows), loop)


def loader(task: Mapping[str, Any]) -> dict[str, float]:
    """Embed like ``peers/dataloader_loop.py`` on a GPU, with windows in memory."""
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    from peers.common import embed, load_model

    windows, device = _windows(task, settings_of(task).windows), _torch_device(task)
    model = load_model(task["model"], Path(task["checkpoint"]), device)
    batches = DataLoader(
        TensorDataset(torch.from_numpy(windows)), LOADER_BATCH, pin_memory=device == "cuda", num_workers=1
    )

    def loop() -> None:
        for (batch,) in batches:
            embed(model, batch.to(device, non_blocking=True), task["precision"]).cpu().numpy()

    loop()
    return _repeat(task["seconds"], len(windows), loop)


def _torch_device(task: Mapping[str, Any]) -> str:
    return "cuda" if task["device"] == "cuda" else "cpu"


def vectors(task: Mapping[str, Any]) -> dict[str, float]:
    """Compare the encoder's vectors with those of the reference loop in fp32 on the CPU."""
    import numpy as np
    import torch

    from peers.common import embed, load_model

    encoder = encoder_of(task)
    windows = _windows(task, encoder.settings.windows)[:N_COMPARED]
    actual = encoder.encode(windows, np.full(len(windows), windows.shape[1]))["embedding"]
    model = load_model(task["model"], Path(task["checkpoint"]))
    expected = np.concatenate([embed(model, torch.from_numpy(window)[None], "fp32").numpy() for window in windows])
    norms = np.linalg.norm(expected, axis=1)
    cosines = (actual * expected).sum(1) / np.linalg.norm(actual, axis=1) / norms
    _wait_for_start()
    return {"error": float((np.linalg.norm(actual - expected, axis=1) / norms).max()), "cosine": float(cosines.min())}


def _windows(task: Mapping[str, Any], spec: Any) -> Any:
    """Return windows ``[n, length]`` of a few recordings, repeated as often as needed."""
    import numpy as np

    from embedding.decoding.cut import cut

    windows: list[Any] = []
    for path in sorted(path for path in Path(task["folder"]).rglob("*") if path.is_file()):
        for cut_windows in cut(_blocks(path, spec.rate_hz), spec):
            windows.extend(cut_windows)
    n = N_WINDOWS[task["device"]]
    return np.stack((windows * -(-n // len(windows)))[:n])


def _repeat(seconds: float, n_windows: int, work: Callable[[], object], n_threads: int = 1) -> dict[str, float]:
    def repeat(until: Callable[[], bool]) -> int:
        n = 0
        while not until():
            work()
            n += n_windows
        return n

    with ThreadPoolExecutor(n_threads) as pool:
        # One unmeasured call per thread, because cuBLAS and cuDNN make handles and plans for each thread.
        list(pool.map(lambda _: work(), range(n_threads)))
        began = _wait_for_start()
        n = sum(pool.map(repeat, [lambda: time.perf_counter() - began >= seconds] * n_threads))
    return {"windows": n, "seconds": time.perf_counter() - began}


def _blocks(path: Path, rate_hz: int) -> Iterator[Any]:
    from embedding.decoding.audio import open_recording

    with open_recording(str(path)) as recording:
        for (block,) in recording.blocks(rate_hz):
            yield block


def decode(task: Mapping[str, Any]) -> dict[str, float]:
    import pyarrow as pa

    from embedding.decoding.decode import decode as to_windows
    from embedding.decoding.events import Decoded, Failed
    from embedding.listing.listing import list_recordings
    from embedding.planning.work_sizes import batch_limits
    from embedding.schema.recordings import read_pending

    settings = settings_of(dict(task) | {"checkpoint": "random", "precision": "fp32"})
    windows, size = settings.windows, batch_limits("cpu", settings.model.architecture)[1]
    number, of = task["share"]
    recordings = list_recordings([task["folder"]]).recordings
    recordings = read_pending(recordings.take(pa.array(range(number, len(recordings), of))), 1)
    audio_s = 0.0
    began = _wait_for_start()
    while time.perf_counter() - began < task["seconds"]:
        for event in to_windows(recordings, [windows], size):
            assert not isinstance(event, Failed), event
            if isinstance(event, Decoded):
                audio_s += event.duration_s
    return {"audio_s": audio_s, "seconds": time.perf_counter() - began}


def settings_of(task: Mapping[str, Any]) -> Any:
    from embedding.config import EmbedConfig
    from embedding.encoding.settings import Settings

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


def _wait_for_start() -> float:
    _print("ready")
    sys.stdin.readline()
    return time.perf_counter()


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> int:
    stages = {"encode": encode, "reference": reference, "loader": loader, "vectors": vectors, "decode": decode}
    stage, task = stages[sys.argv[1]], json.loads(sys.argv[2])
    _print(json.dumps(stage(task)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

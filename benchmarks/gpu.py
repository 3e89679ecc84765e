"""Speed and accuracy of a GPU, and the share of its speed that the job reaches.

``python benchmarks/gpu.py --case CASE``

*parity*: vectors of each precision against the reference loop in fp32 on the CPU.
*memory*: the job's encoder on windows in memory, including their copies to the GPU, and two programs that a user writes
by hand on the same windows: avex's module with one window at a time, and with the batches of a ``DataLoader``.
*parts*: the effect of single parts of the encoder.
*fed*: the job on recordings that all cores decode, as the difference between a long and a short archive; and the share
of time in which the GPU worked, as reported by nvidia-smi.

Each case takes some minutes. ``--device simulated --small`` shows that each case works on a machine without a GPU.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from alone import compare_with_reference, decode_rate, encode_rate, loader_rate, reference_rate
from archive import Archive, add_cache_option
from ceiling import SHORT_NAMES
from harness import Command, CommandError, Measurement, measure, run_rounds
from job import WINDOW_S, ArchivePair, Workspace, make_pair
from local_ray import ray_of
from tables import Spread, add_options, markdown, page, publish, ratios, verdict
from weights import BEATS, EFFICIENTNET, MODELS

PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
WINDOWS_S = (5.0, 10.0)
# Goals for BEATs in bf16 with windows of 5 s on an H100.
GOAL_WINDOWS_PER_S, GOAL_OVER_REFERENCE = 4800.0, 6.0
# Goal for the job as a share of the lower of two rates: the GPU on windows in memory, and decoding on all cores.
GOAL_SHARE_FED = 0.9
PARITY = {"fp32": "error ≤ 1e-5", "tf32": "cosine ≥ 0.999", "bf16": "cosine ≥ 0.999", "fp16": "cosine ≥ 0.999"}
# Parts that are removed from the encoder, or added to it.
PARTS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "without overlap: each pass is waited for": {"without": ("overlap",)},
    "without queues for copies": {"without": ("copy queue",)},
    "with BEATs' bias fused into attention": {"with_": ("fused bias",)},
    "with torch.compile": {"with_": ("compile",)},
}
# The archives are long, because each of sixteen cores decodes 16 kHz audio some thousand times faster than real time.
HOURS = {False: (10.0, 100.0), True: (0.05, 0.2)}  # hours of the short and the long archive, by --small
BUSY_EVERY_MS = 250


class GpuSampler:
    """Sampler of a GPU's utilisation by nvidia-smi.

    Attributes:
        busy_share: Mean utilisation from the first busy sample to the last; set at the end of the block.
    """

    def __enter__(self) -> "GpuSampler":
        self._output = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [
                "nvidia-smi",
                "--query-gpu=utilization.gpu",
                "--format=csv,noheader,nounits",
                f"--loop-ms={BUSY_EVERY_MS}",
            ],
            stdout=self._output,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()
        self._output.seek(0)
        percents = [float(line) for line in self._output if line.strip().isdigit()]
        self._output.close()
        if not percents:
            raise CommandError("nvidia-smi reported no utilisation of the GPU")
        self.busy_share = busy_share(percents)


def busy_share(percents: list[float]) -> float:
    busy = [i for i, percent in enumerate(percents) if percent > 0]
    if not busy:
        return 0.0
    active = percents[busy[0] : busy[-1] + 1]
    return sum(active) / len(active) / 100


Table = tuple[list[str], list[list[str]], list[str]]  # columns, rows and notes


def parity(workspace: Workspace, arguments: argparse.Namespace) -> Table:
    rows, notes = [], []
    for model in models(arguments):
        for precision in PRECISIONS:
            for window_s in WINDOWS_S[: 1 if arguments.small else 2]:
                result = compare_with_reference(workspace, model, precision, device=arguments.device, window_s=window_s)
                error, cosine = result["error"], result["cosine"]
                holds = error <= 1e-5 if precision == "fp32" else cosine >= 0.999
                row = [SHORT_NAMES[model], precision, f"{window_s:g} s", f"{error:.1e}", f"{cosine:.7f}"]
                rows.append([*row, PARITY[precision], "holds" if holds else "BROKEN"])
                if not holds:
                    notes.append(f"{SHORT_NAMES[model]}, {precision}, {window_s:g} s: parity is broken.")
    return (
        ["", "precision", "window", "largest relative error", "smallest cosine", "required", ""],
        rows,
        notes,
    )


def in_memory(workspace: Workspace, arguments: argparse.Namespace) -> Table:
    tasks: dict[str, Callable[[], float]] = {}
    windows_s = WINDOWS_S[: 1 if arguments.small else 2]

    def add(program: str, rate: Callable[..., float], model: str, precision: str, window_s: float) -> None:
        tasks[f"{program} {model} {precision} {window_s:g}"] = lambda: rate(
            workspace,
            model,
            precision,
            processes=1,
            threads=1,
            seconds=seconds(arguments),
            device=arguments.device,
            window_s=window_s,
        )

    for model in models(arguments):
        for window_s in windows_s:
            for precision in PRECISIONS:
                add("encoder", encode_rate, model, precision, window_s)
            for precision in ("fp32", "bf16"):
                add("reference", reference_rate, model, precision, window_s)
                add("loader", loader_rate, model, precision, window_s)
    results = run_rounds(tasks, 1 if arguments.small else arguments.rounds)
    rows, notes = [], []
    for model in models(arguments):
        for window_s in windows_s:
            # Programs written by hand count with the faster of two precisions, which a user would choose.
            loop, loader = (
                list(map(max, *(results[f"{program} {model} {p} {window_s:g}"] for p in ("fp32", "bf16"))))
                for program in ("reference", "loader")
            )
            for precision in PRECISIONS:
                rates = results[f"encoder {model} {precision} {window_s:g}"]
                rows.append(
                    [
                        *(SHORT_NAMES[model], precision, f"{window_s:g} s", Spread.of(rates).text(",.0f")),
                        Spread.of([rate * window_s for rate in rates]).text(",.0f"),
                        *(Spread.of(loop).text(",.0f"), ratios(rates, loop).text(".1f")),
                        *(Spread.of(loader).text(",.0f"), ratios(rates, loader).text(".1f")),
                    ]
                )
            if (model, window_s) == (BEATS, WINDOW_S) and arguments.device == "cuda":
                rates = results[f"encoder {BEATS} bf16 {window_s:g}"]
                notes.append(
                    f"BEATs, bf16, 5 s, windows/s: {verdict(Spread.of(rates).median, GOAL_WINDOWS_PER_S, ',.0f')}."
                )
                notes.append(f"… over the reference loop: {verdict(ratios(rates, loop).median, GOAL_OVER_REFERENCE)}.")
    columns = ["", "precision", "window", "windows/s", "× real time", "reference loop", "times as fast"]
    return [*columns, "`DataLoader` loop", "times as fast"], rows, notes


def parts(workspace: Workspace, arguments: argparse.Namespace) -> Table:
    precision = "bf16"
    tasks: dict[str, Callable[[], float]] = {}
    for model in models(arguments):
        for name, changes in PARTS.items():
            if model == BEATS or "with_" not in changes or "fused bias" not in changes["with_"]:
                tasks[f"{model} {name}"] = lambda m=model, c=changes: encode_rate(
                    workspace,
                    m,
                    precision,
                    processes=1,
                    threads=1,
                    seconds=seconds(arguments),
                    device=arguments.device,
                    **c,
                )
    results = run_rounds(tasks, 1 if arguments.small else arguments.rounds)
    rows = []
    for model in models(arguments):
        whole = results[f"{model} as it is"]
        for name in PARTS:
            if (rates := results.get(f"{model} {name}")) is not None:
                rows.append([SHORT_NAMES[model], name, Spread.of(rates).text(",.0f"), ratios(rates, whole).text(".2f")])
    return ["", "encoder", "windows/s", "of as it is"], rows, [f"Windows of {WINDOW_S:g} s in {precision}."]


def fed(workspace: Workspace, arguments: argparse.Namespace) -> Table:
    short_h, long_h = HOURS[arguments.small]
    archive = Archive.of_hours(long_h, rate_hz=16_000)
    precisions = ("fp32",) if arguments.small else ("fp32", "bf16")
    tasks: dict[str, Callable[[], Any]] = {
        "decode": lambda: decode_rate(
            workspace,
            workspace.recordings(archive),
            EFFICIENTNET,
            processes=arguments.cores,
            seconds=seconds(arguments),
        )
    }
    pairs: dict[tuple[str, str], ArchivePair] = {}
    busy_shares: dict[str, list[float]] = {}

    def measure_with_gpu(pair: ArchivePair) -> Measurement:
        if arguments.device != "cuda":
            return measure(pair.long)
        with GpuSampler() as gpu:
            measurement = measure(pair.long)
        busy_shares.setdefault(pair.name, []).append(gpu.busy_share)
        return measurement

    with ExitStack() as stack:
        env = {"RAY_ADDRESS": stack.enter_context(ray_of(2, n_gpus=1))} if arguments.device == "simulated" else {}
        for model in models(arguments):
            for precision in precisions:
                pair = make_pair(
                    workspace,
                    f"{model} {precision}",
                    archive,
                    Archive.of_hours(short_h, rate_hz=16_000).n_files,
                    lambda name, folder, m=model, p=precision: job_command(
                        workspace, arguments.device, name, folder, m, p, env
                    ),
                )
                pairs[model, precision] = pair
                tasks[pair.short.name] = lambda command=pair.short: measure(command)
                tasks[pair.long.name] = lambda pair=pair: measure_with_gpu(pair)
                tasks[f"{pair.name} alone"] = lambda m=model, p=precision: encode_rate(
                    workspace, m, p, processes=1, threads=1, seconds=seconds(arguments), device=arguments.device
                )
        results = run_rounds(tasks, 1 if arguments.small else arguments.rounds)
    decoding = Spread.of(results["decode"]).text(",.0f")
    rows, notes = [], [f"Decoding alone, {arguments.cores} cores: {decoding} × real time."]
    for (model, precision), pair in pairs.items():
        alone = [rate * WINDOW_S for rate in results[f"{pair.name} alone"]]
        reached = pair.times_real_time(results)
        possible = [min(rates) for rates in zip(alone, results["decode"], strict=True)]
        share = ratios(reached, possible)
        shares = busy_shares.get(pair.name)
        rows.append(
            [
                *(SHORT_NAMES[model], precision, Spread.of(alone).text(",.0f"), Spread.of(reached).text(",.0f")),
                *(ratios(reached, alone).text(".2f"), share.text(".2f")),
                Spread.of(shares).text(".2f") if shares else "–",
            ]
        )
        if arguments.device == "cuda":
            goal = verdict(share.median, GOAL_SHARE_FED)
            notes.append(f"{SHORT_NAMES[model]}, {precision}, fed over the lower of in memory and decoding: {goal}.")
    columns = ["", "precision", "in memory, × real time", "fed, × real time", "of in memory", "of the possible"]
    return [*columns, "GPU busy"], rows, [f"{archive}; windows of {WINDOW_S:g} s.", *notes]


def job_command(  # noqa: PLR0917 — the job's own options
    workspace: Workspace, device: str, name: str, folder: Path, model: str, precision: str, env: dict[str, str]
) -> Command:
    """Return the job's command for a device; a simulated device runs in the job's own program."""
    options = ("--precision", precision, "--device", "cuda" if device == "simulated" else device)
    command = workspace.embed_command(name, folder, model, *options, env=env)
    if device != "simulated":
        return command
    python, _, _, *arguments = command.argv
    program = str(Path(__file__).with_name("simulated_gpu.py"))
    token = {"RAY_AUTH_MODE": "disabled"}  # as in the Ray of ``ray_of``
    return Command(command.name, [python, program, *arguments], command.output, dict(command.env) | token)


def models(arguments: argparse.Namespace) -> list[str]:
    if arguments.small:
        return [BEATS] if arguments.case == "parts" else [EFFICIENTNET]  # only BEATs has all parts
    return list(MODELS)


def seconds(arguments: argparse.Namespace) -> float:
    return 2.0 if arguments.small else arguments.seconds


CASES = {"parity": parity, "memory": in_memory, "parts": parts, "fed": fed}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=CASES, default="memory")
    parser.add_argument("--device", choices=("cuda", "simulated"), default="cuda")
    parser.add_argument(
        "--seconds", type=float, default=8.0, help="duration of each measurement in memory (default: %(default)s)"
    )
    parser.add_argument(
        "--cores", type=int, default=16, help="number of cores for decoding alone (default: %(default)s)"
    )
    add_options(parser, rounds=2)
    add_cache_option(parser)
    arguments = parser.parse_args()
    workspace = Workspace.of(arguments, "gpu")
    began = time.perf_counter()
    columns, rows, notes = CASES[arguments.case](workspace, arguments)
    notes.append(f"The case took {time.perf_counter() - began:.0f} s.")
    publish(f"gpu-{arguments.case}", page(__doc__, markdown(columns, rows), notes), save=arguments.save)
    return 0


if __name__ == "__main__":
    sys.exit(main())

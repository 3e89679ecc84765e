"""How fast and how exactly does a GPU embed, and what of that does the job reach? ``python benchmarks/gpu.py --case C``

*parity*: vectors of each precision against the reference loop in fp32 on the CPU.
*memory*: the job's encoder on windows that lie in memory (their way to the GPU is part of it), and two loops written by
hand on the same windows: avex's module with one window at a time, and with batches of a ``DataLoader``.
*parts*: what single parts of the encoder bring.
*fed*: the job, from recordings that all cores decode, as the difference between a long and a short archive; and what
share of its time the GPU worked, as nvidia-smi says.

Each case takes some minutes. ``--device simulated --small`` shows that each works where there is no GPU.
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

from alone import compared, decode_rate, encode_rate, loader_rate, reference_rate
from archive import Archive, add_cache_option
from ceiling import SHORT
from harness import Command, CommandError, Measured, measure, rounds
from job import WINDOW_S, Pair, Workplace, pair
from local_ray import ray_of
from tables import Spread, add_options, markdown, page, publish, question, ratios, verdict
from weights import BEATS, EFFICIENTNET, MODELS

PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
WINDOWS_S = (5.0, 10.0)
# Of BEATs in bf16 with windows of 5 s on an H100.
WINDOWS_PER_S, OVER_REFERENCE = 4800.0, 6.0
# Of what the GPU in memory and the cores' decoding allow together.
SHARE_FED = 0.9
PARITY = {"fp32": "error ≤ 1e-5", "tf32": "cosine ≥ 0.999", "bf16": "cosine ≥ 0.999", "fp16": "cosine ≥ 0.999"}
# What is left out of the encoder, and added to it.
PARTS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "without overlap: each pass is waited for": {"without": ("overlap",)},
    "without queues for copies": {"without": ("copy queue",)},
    "with BEATs' bias fused into attention": {"with_": ("fused bias",)},
    "with torch.compile": {"with_": ("compile",)},
}
# At 16 kHz decoding is some thousand times real time per core, which sixteen of them need.
HOURS = {False: (10.0, 100.0), True: (0.05, 0.2)}  # short and long; small or not
BUSY_EVERY_MS = 250


class Busy:
    """The share of time in which a GPU worked, while it did at all: from its first busy sample to its last."""

    def __enter__(self) -> "Busy":
        self._said = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [
                "nvidia-smi",
                "--query-gpu=utilization.gpu",
                "--format=csv,noheader,nounits",
                f"--loop-ms={BUSY_EVERY_MS}",
            ],
            stdout=self._said,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()
        self._said.seek(0)
        percents = [float(line) for line in self._said if line.strip().isdigit()]
        self._said.close()
        if not percents:
            raise CommandError("nvidia-smi said nothing of how busy the GPU was")
        self.share = busy_share(percents)


def busy_share(percents: list[float]) -> float:
    busy = [i for i, percent in enumerate(percents) if percent > 0]
    if not busy:
        return 0.0
    worked = percents[busy[0] : busy[-1] + 1]
    return sum(worked) / len(worked) / 100


Table = tuple[list[str], list[list[str]], list[str]]


def parity(place: Workplace, arguments: argparse.Namespace) -> Table:
    found, notes = [], []
    for model in models(arguments):
        for precision in PRECISIONS:
            for window_s in WINDOWS_S[: 1 if arguments.small else 2]:
                said = compared(place, model, precision, device=arguments.device, window_s=window_s)
                error, cosine = said["error"], said["cosine"]
                holds = error <= 1e-5 if precision == "fp32" else cosine >= 0.999
                row = [SHORT[model], precision, f"{window_s:g} s", f"{error:.1e}", f"{cosine:.7f}"]
                found.append([*row, PARITY[precision], "holds" if holds else "BROKEN"])
                if not holds:
                    notes.append(f"{SHORT[model]}, {precision}, {window_s:g} s: parity is broken.")
    return (
        ["", "precision", "window", "largest relative error", "smallest cosine", "wanted", ""],
        found,
        notes,
    )


def in_memory(place: Workplace, arguments: argparse.Namespace) -> Table:
    tasks: dict[str, Callable[[], float]] = {}
    windows_s = WINDOWS_S[: 1 if arguments.small else 2]

    def add(who: str, rate: Callable[..., float], model: str, precision: str, window_s: float) -> None:
        tasks[f"{who} {model} {precision} {window_s:g}"] = lambda: rate(
            place,
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
    results = rounds(tasks, 1 if arguments.small else arguments.rounds)
    found, notes = [], []
    for model in models(arguments):
        for window_s in windows_s:
            # Against the better of two precisions: a user would take it.
            loop, loader = (
                list(map(max, *(results[f"{who} {model} {p} {window_s:g}"] for p in ("fp32", "bf16"))))
                for who in ("reference", "loader")
            )
            for precision in PRECISIONS:
                ours = results[f"encoder {model} {precision} {window_s:g}"]
                found.append(
                    [
                        *(SHORT[model], precision, f"{window_s:g} s", Spread.of(ours).text(",.0f")),
                        Spread.of([rate * window_s for rate in ours]).text(",.0f"),
                        *(Spread.of(loop).text(",.0f"), ratios(ours, loop).text(".1f")),
                        *(Spread.of(loader).text(",.0f"), ratios(ours, loader).text(".1f")),
                    ]
                )
            if (model, window_s) == (BEATS, WINDOW_S) and arguments.device == "cuda":
                ours = results[f"encoder {BEATS} bf16 {window_s:g}"]
                notes.append(f"BEATs, bf16, 5 s, windows/s: {verdict(Spread.of(ours).median, WINDOWS_PER_S, ',.0f')}.")
                notes.append(f"… over the reference loop: {verdict(ratios(ours, loop).median, OVER_REFERENCE)}.")
    columns = ["", "precision", "window", "windows/s", "× real time", "reference loop", "times as fast"]
    return [*columns, "`DataLoader` loop", "times as fast"], found, notes


def parts(place: Workplace, arguments: argparse.Namespace) -> Table:
    precision = "bf16"
    tasks: dict[str, Callable[[], float]] = {}
    for model in models(arguments):
        for name, changes in PARTS.items():
            if model == BEATS or "with_" not in changes or "fused bias" not in changes["with_"]:
                tasks[f"{model} {name}"] = lambda m=model, c=changes: encode_rate(
                    place,
                    m,
                    precision,
                    processes=1,
                    threads=1,
                    seconds=seconds(arguments),
                    device=arguments.device,
                    **c,
                )
    results = rounds(tasks, 1 if arguments.small else arguments.rounds)
    found = []
    for model in models(arguments):
        whole = results[f"{model} as it is"]
        for name in PARTS:
            if (rates := results.get(f"{model} {name}")) is not None:
                found.append([SHORT[model], name, Spread.of(rates).text(",.0f"), ratios(rates, whole).text(".2f")])
    return ["", "encoder", "windows/s", "of as it is"], found, [f"Windows of {WINDOW_S:g} s in {precision}."]


def fed(place: Workplace, arguments: argparse.Namespace) -> Table:
    short_h, long_h = HOURS[arguments.small]
    archive = Archive.of_hours(long_h, rate_hz=16_000)
    precisions = ("fp32",) if arguments.small else ("fp32", "bf16")
    tasks: dict[str, Callable[[], Any]] = {
        "decode": lambda: decode_rate(
            place, place.recordings(archive), EFFICIENTNET, processes=arguments.cores, seconds=seconds(arguments)
        )
    }
    pairs: dict[tuple[str, str], Pair] = {}
    busy: dict[str, list[float]] = {}

    def watched(pair: Pair) -> Measured:
        if arguments.device != "cuda":
            return measure(pair.long)
        with Busy() as gpu:
            measured = measure(pair.long)
        busy.setdefault(pair.name, []).append(gpu.share)
        return measured

    with ExitStack() as stack:
        env = {"RAY_ADDRESS": stack.enter_context(ray_of(2, n_gpus=1))} if arguments.device == "simulated" else {}
        for model in models(arguments):
            for precision in precisions:
                each = pair(
                    place,
                    f"{model} {precision}",
                    archive,
                    Archive.of_hours(short_h, rate_hz=16_000).n_files,
                    lambda name, folder, m=model, p=precision: job(place, arguments.device, name, folder, m, p, env),
                )
                pairs[model, precision] = each
                tasks[each.short.name] = lambda command=each.short: measure(command)
                tasks[each.long.name] = lambda each=each: watched(each)
                tasks[f"{each.name} alone"] = lambda m=model, p=precision: encode_rate(
                    place, m, p, processes=1, threads=1, seconds=seconds(arguments), device=arguments.device
                )
        results = rounds(tasks, 1 if arguments.small else arguments.rounds)
    decoding = Spread.of(results["decode"]).text(",.0f")
    found, notes = [], [f"Decoding alone, {arguments.cores} cores: {decoding} × real time."]
    for (model, precision), each in pairs.items():
        alone = [rate * WINDOW_S for rate in results[f"{each.name} alone"]]
        reached = each.times_real_time(results)
        possible = [min(pair) for pair in zip(alone, results["decode"], strict=True)]
        share = ratios(reached, possible)
        shares = busy.get(each.name)
        found.append(
            [
                *(SHORT[model], precision, Spread.of(alone).text(",.0f"), Spread.of(reached).text(",.0f")),
                *(ratios(reached, alone).text(".2f"), share.text(".2f")),
                Spread.of(shares).text(".2f") if shares else "–",
            ]
        )
        if arguments.device == "cuda":
            goal = verdict(share.median, SHARE_FED)
            notes.append(f"{SHORT[model]}, {precision}, fed over the lesser of in memory and decoding: {goal}.")
    columns = ["", "precision", "in memory, × real time", "fed, × real time", "of in memory", "of the possible"]
    return [*columns, "GPU busy"], found, [f"{archive}; windows of {WINDOW_S:g} s.", *notes]


def job(  # noqa: PLR0917 — the job's own options
    place: Workplace, device: str, name: str, folder: Path, model: str, precision: str, env: dict[str, str]
) -> Command:
    """The job on that device; on a simulated one in its small form, with a program that brings the device."""
    options = ("--precision", precision, "--device", "cuda" if device == "simulated" else device)
    command = place.embed(name, folder, model, *options, env=env)
    if device != "simulated":
        return command
    python, _, _, *arguments = command.argv
    program = str(Path(__file__).with_name("simulated_gpu.py"))
    token = {"RAY_AUTH_MODE": "disabled"}  # as the Ray of ``ray_of`` has it
    return Command(command.name, [python, program, *arguments], command.output, dict(command.env) | token)


def models(arguments: argparse.Namespace) -> list[str]:
    if arguments.small:
        return [BEATS] if arguments.case == "parts" else [EFFICIENTNET]  # BEATs alone has each part
    return list(MODELS)


def seconds(arguments: argparse.Namespace) -> float:
    return 2.0 if arguments.small else arguments.seconds


CASES = {"parity": parity, "memory": in_memory, "parts": parts, "fed": fed}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=CASES, default="memory")
    parser.add_argument("--device", choices=("cuda", "simulated"), default="cuda")
    parser.add_argument("--seconds", type=float, default=8.0, help="of work in memory (default: %(default)s)")
    parser.add_argument("--cores", type=int, default=16, help="that decode alone (default: %(default)s)")
    add_options(parser, rounds=2)
    add_cache_option(parser)
    arguments = parser.parse_args()
    place = Workplace.of(arguments, "gpu")
    began = time.perf_counter()
    columns, found, notes = CASES[arguments.case](place, arguments)
    notes.append(f"It took {time.perf_counter() - began:.0f} s.")
    publish(f"gpu-{arguments.case}", page(question(__doc__), markdown(columns, found), notes), save=arguments.save)
    return 0


if __name__ == "__main__":
    sys.exit(main())

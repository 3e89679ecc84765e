"""How fast does a GPU embed, and how much of that does the job reach? ``python benchmarks/gpu.py --case memory``

*memory*: the job's encoder on windows that lie in memory (their way to the GPU is part of it), and what one writes by
hand, avex's module with one window at a time, on the same windows. *fed*: the job, from recordings that all cores
decode, as the difference between a long and a short archive; and what share of its time the GPU worked, as nvidia-smi
says. Each case takes some minutes. ``--device cpu --small`` shows that it works where there is no GPU.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from alone import decode_rate, encode_rate, reference_rate
from archive import Archive, add_cache_option
from ceiling import SHORT
from harness import Measured, measure, rounds
from job import WINDOW_S, Pair, Workplace, pair
from tables import Spread, add_options, markdown, page, publish, question, ratios, verdict
from vectors import relative_error
from weights import BEATS, EFFICIENTNET, MODELS

PRECISIONS = ("fp32", "bf16")
WINDOWS_S = (5.0, 10.0)
OVER_REFERENCE, SHARE_FED = 4.0, 0.9
# At 16 kHz decoding is some thousand times real time per core, which sixteen of them need.
HOURS = {False: (10.0, 100.0), True: (0.05, 0.2)}  # short and long; small or not
BUSY_EVERY_MS = 250


class Busy:
    """The share of time in which a GPU worked, while it did at all: from its first busy sample to its last."""

    def __enter__(self) -> "Busy":
        self._said = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", f"-lms={BUSY_EVERY_MS}"],
            stdout=self._said,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()
        self._said.seek(0)
        self.share = busy_share([float(line) for line in self._said if line.strip().isdigit()])
        self._said.close()


def busy_share(percents: list[float]) -> float:
    busy = [i for i, percent in enumerate(percents) if percent > 0]
    if not busy:
        return 0.0
    worked = percents[busy[0] : busy[-1] + 1]
    return sum(worked) / len(worked) / 100


def in_memory(place: Workplace, arguments: argparse.Namespace) -> tuple[list[str], list[list[str]], list[str]]:
    models = [EFFICIENTNET] if arguments.small else MODELS
    seconds = 2.0 if arguments.small else arguments.seconds
    tasks: dict[str, Callable[[], float]] = {}
    combinations = [(m, p, w) for m in models for p in PRECISIONS for w in WINDOWS_S]
    for model, precision, window_s in combinations:
        for who, rate in (("encoder", encode_rate), ("reference", reference_rate)):
            tasks[f"{who} {model} {precision} {window_s:g}"] = lambda r=rate, m=model, p=precision, w=window_s: r(
                place, m, p, processes=1, threads=1, seconds=seconds, device=arguments.device, window_s=w
            )
    results = rounds(tasks, 1 if arguments.small else arguments.rounds)
    found, notes = [], []
    for model, precision, window_s in combinations:
        ours, loop = (results[f"{who} {model} {precision} {window_s:g}"] for who in ("encoder", "reference"))
        times = ratios(ours, loop)
        found.append(
            [
                *(SHORT[model], precision, f"{window_s:g} s", Spread.of(ours).text(".0f")),
                *(Spread.of([rate * window_s for rate in ours]).text(",.0f"), Spread.of(loop).text(".0f")),
                times.text(".1f"),
            ]
        )
        if (model, precision, window_s) == (BEATS, "bf16", WINDOW_S):
            # Against the better of both: a user would take it.
            best = ratios(ours, [max(pair) for pair in zip(loop, results[f"reference {BEATS} fp32 5"], strict=True)])
            notes.append(f"BEATs, bf16, 5 s, over the reference loop: {verdict(best.median, OVER_REFERENCE)}.")
    return (
        ["", "precision", "window", "windows/s", "× real time", "reference loop, windows/s", "times as fast"],
        found,
        notes,
    )


def fed(place: Workplace, arguments: argparse.Namespace) -> tuple[list[str], list[list[str]], list[str]]:
    models = [EFFICIENTNET] if arguments.small else MODELS
    seconds = 2.0 if arguments.small else arguments.seconds
    short_h, long_h = HOURS[arguments.small]
    archive = Archive.of_hours(long_h, rate_hz=16_000)
    tasks: dict[str, Callable[[], Any]] = {
        "decode": lambda: decode_rate(
            place, place.recordings(archive), EFFICIENTNET, processes=arguments.cores, seconds=seconds
        )
    }
    pairs: dict[tuple[str, str], Pair] = {}
    busy: dict[str, list[float]] = {}

    def watched(pair: Pair) -> Measured:
        if arguments.device == "cpu":
            return measure(pair.long)
        with Busy() as gpu:
            measured = measure(pair.long)
        busy.setdefault(pair.name, []).append(gpu.share)
        return measured

    for model in models:
        for precision in PRECISIONS:
            options = ("--precision", precision, "--device", arguments.device)
            each = pair(
                place,
                f"{model} {precision}",
                archive,
                Archive.of_hours(short_h, rate_hz=16_000).n_files,
                lambda name, folder, m=model, o=options: place.embed(name, folder, m, *o),
            )
            pairs[model, precision] = each
            tasks[each.short.name] = lambda command=each.short: measure(command)
            tasks[each.long.name] = lambda each=each: watched(each)
            tasks[f"{each.name} alone"] = lambda m=model, p=precision: encode_rate(
                place, m, p, processes=1, threads=1, seconds=seconds, device=arguments.device
            )
    results = rounds(tasks, 1 if arguments.small else arguments.rounds)
    decoding = Spread.of(results["decode"]).text(",.0f")
    found, notes = [], [f"Decoding alone, {arguments.cores} cores: {decoding} × real time."]
    for (model, precision), each in pairs.items():
        alone = [rate * WINDOW_S for rate in results[f"{each.name} alone"]]
        reached = each.times_real_time(results)
        share = ratios(reached, alone)
        shares = busy.get(each.name)
        error = "0"
        if precision != "fp32":
            output, reference = each.long.output, pairs[model, "fp32"].long.output
            assert output is not None
            assert reference is not None
            error = f"{relative_error(output, reference):.0e}"
        found.append(
            [
                *(SHORT[model], precision, Spread.of(alone).text(",.0f"), Spread.of(reached).text(",.0f")),
                *(share.text(".2f"), Spread.of(shares).text(".2f") if shares else "–", error),
            ]
        )
        if not arguments.small:
            notes.append(f"{SHORT[model]}, {precision}, fed over in memory: {verdict(share.median, SHARE_FED)}.")
    return (
        ["", "precision", "in memory, × real time", "fed, × real time", "share", "GPU busy", "error of vectors"],
        found,
        [f"{archive}; windows of {WINDOW_S:g} s. The error is the largest of a window, against fp32.", *notes],
    )


CASES = {"memory": in_memory, "fed": fed}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=CASES, default="memory")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
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

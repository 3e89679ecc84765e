"""Speed of the encoder alone and of decoding alone, on all cores.

``python benchmarks/ceiling.py``

The encoder works on windows in memory, and decoding drops its windows; both are the job's code in processes without
Ray. Both together permit 1/(1/encoding + 1/decoding): the ceiling of the job if all other work were free.
"""

import argparse
import os
import sys
from collections.abc import Callable

from alone import combined_rate, decode_rate, encode_rate
from archive import Archive, add_cache_option
from harness import run_rounds
from job import WINDOW_S, Workspace
from tables import Spread, add_options, markdown, page, publish
from weights import BEATS, EFFICIENTNET, MODELS

SHORT_NAMES = {EFFICIENTNET: "EfficientNet-B0", BEATS: "BEATs"}
DECODED = [
    Archive.of_hours(0.5, rate_hz=48_000),
    Archive.of_hours(0.5, rate_hz=44_100),
    Archive.of_hours(0.5, rate_hz=16_000),
    Archive.of_hours(0.5, rate_hz=48_000, format="wav"),
    Archive.of_hours(0.5, rate_hz=44_100, format="mp3"),
    Archive.of_hours(0.5, rate_hz=48_000, format="opus"),
    Archive("wav", 48_000, 600, 3.0),
    Archive("flac", 48_000, 2, 6 * 3600.0),
]
SMALL = [Archive.of_hours(0.1), Archive.of_hours(0.1, format="opus"), Archive("wav", 48_000, 100, 3.0)]
DECODING = "decoding, "  # prefix of names; the first archive is the one of the ceiling


def tasks(arguments: argparse.Namespace, workspace: Workspace) -> dict[str, Callable[[], float]]:
    """Return tasks by name, which return × real time."""
    seconds = 2.0 if arguments.small else arguments.seconds
    archives = SMALL if arguments.small else DECODED
    all_tasks: dict[str, Callable[[], float]] = {}
    for archive in archives:
        folder = workspace.recordings(archive)
        all_tasks[f"{DECODING}{archive}"] = lambda folder=folder: decode_rate(
            workspace, folder, EFFICIENTNET, processes=arguments.cores, seconds=seconds
        )
    layouts = [(arguments.cores, 1), (1, arguments.cores)] if arguments.device == "cpu" else [(1, 1)]
    for model in MODELS:
        for precision in ("fp32", "bf16"):
            for processes, threads in layouts[: 1 if arguments.small else None]:
                name = f"{SHORT_NAMES[model]}, {precision}, {processes} × {threads}"
                all_tasks[name] = lambda m=model, p=precision, n=processes, t=threads: (
                    WINDOW_S
                    * encode_rate(workspace, m, p, processes=n, threads=t, seconds=seconds, device=arguments.device)
                )
    return all_tasks


def rows(results: dict[str, list[float]]) -> list[list[str]]:
    decoding = next(iter(results.values()))
    table_rows = []
    for name, rates in results.items():
        is_encoding = not name.startswith(DECODING)
        together = [combined_rate(encode_x, decode_x) for encode_x, decode_x in zip(rates, decoding, strict=True)]
        windows = Spread.of([rate / WINDOW_S for rate in rates]).text(".1f") if is_encoding else "–"
        table_rows.append(
            [name, windows, Spread.of(rates).text(".0f"), Spread.of(together).text(".0f") if is_encoding else "–"]
        )
    return table_rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--seconds", type=float, default=20.0, help="duration of each measurement (default: %(default)s)"
    )
    parser.add_argument("--cores", type=int, default=os.cpu_count(), help="default: %(default)s")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    add_options(parser, rounds=3)
    add_cache_option(parser)
    arguments = parser.parse_args()
    workspace = Workspace.of(arguments, "ceiling")
    results = run_rounds(tasks(arguments, workspace), 1 if arguments.small else arguments.rounds)
    table = markdown(["", "windows/s", "× real time", "with decoding: × real time"], rows(results))
    notes = [
        f"Windows of {WINDOW_S:g} s; *n × m* is n processes of m threads; decoding in {arguments.cores} processes, "
        "from the file cache, to windows at 16 kHz.",
        f"*with decoding* is both one after the other on all cores, for {next(iter(results)).removeprefix(DECODING)}.",
    ]
    publish("ceiling", page(__doc__, table, notes), save=arguments.save)
    return 0


if __name__ == "__main__":
    sys.exit(main())

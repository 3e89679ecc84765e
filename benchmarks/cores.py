"""How much faster is the job on more cores? ``python benchmarks/cores.py``

On 1, 2, 4 … of this machine's cores: processes are bound to them, and Ray is told that there are no more. The rate is
the difference between a long and a short archive.
"""

import argparse
import json
import os
import sys
from pathlib import Path

from archive import Archive, add_cache_option
from harness import Command, rounds
from job import Pair, Workplace, last_run, pair
from tables import Spread, add_options, markdown, page, publish, question, ratios
from weights import BEATS, EFFICIENTNET, MODELS

HOURS = {EFFICIENTNET: (0.5, 2.0), BEATS: (0.05, 0.25)}
SMALL_HOURS = {EFFICIENTNET: (0.1, 0.5), BEATS: (1 / 60, 0.05)}


def on_cores(n: int, command: Command) -> Command:
    """Ray counts the machine's cores, whichever it may use, unless told."""
    argv = ["taskset", "--cpu-list", f"0-{n - 1}", *command.argv]
    env = {"RAY_OVERRIDE_RESOURCES": json.dumps({"CPU": n})}
    return Command(command.name, argv, command.output, dict(command.env) | env)


def pairs(place: Workplace, model: str, n_cores: list[int], *, small: bool) -> dict[int, Pair]:
    short_h, long_h = (SMALL_HOURS if small else HOURS)[model]

    def job(n: int, name: str, folder: Path) -> Command:
        return on_cores(n, place.embed(name, folder, model))

    return {
        n: pair(
            place,
            f"{n} of the cores",
            Archive.of_hours(long_h),
            Archive.of_hours(short_h).n_files,
            lambda name, folder, n=n: job(n, name, folder),
        )
        for n in n_cores
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=MODELS, default=EFFICIENTNET)
    add_options(parser, rounds=3)
    add_cache_option(parser)
    arguments = parser.parse_args()
    place = Workplace.of(arguments, "cores")
    n_cores = [n for n in (1 << i for i in range(10)) if n <= (os.cpu_count() or 1)]
    by_cores = pairs(place, arguments.model, n_cores, small=arguments.small)
    tasks = {name: task for each in by_cores.values() for name, task in each.tasks().items()}
    results = rounds(tasks, 1 if arguments.small else arguments.rounds)
    one = by_cores[1].times_real_time(results)
    rows = []
    for n, each in by_cores.items():
        assert each.long.output is not None
        n_windows = last_run(each.long.output)["windows_encoded"]
        rate = each.times_real_time(results)
        end_to_end = [run.wall_s for run in results[each.long.name]]
        rows.append(
            [
                str(n),
                *(Spread.of(rate).text(".0f"), ratios(rate, one).text(".2f"), Spread.of(end_to_end).text()),
                f"{n_windows:,}",
            ]
        )
    columns = ["cores", "steady state, × real time", "over one core", "long archive, wall s", "windows of it"]
    table = markdown(columns, rows)
    publish("cores", page(question(__doc__), table, [f"{arguments.model}, fp32."]), save=arguments.save)
    return 0


if __name__ == "__main__":
    sys.exit(main())

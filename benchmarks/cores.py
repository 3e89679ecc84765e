"""Speed of the job by number of cores.

``python benchmarks/cores.py``

Runs on 1, 2, 4 … of this machine's cores: the processes are bound to these cores, and Ray is configured with their
number. The rate is the difference between a long and a short archive.
"""

import argparse
import json
import os
import sys
from pathlib import Path

from archive import Archive, add_cache_option
from harness import Command, run_rounds
from job import ArchivePair, Workspace, last_run, make_pair
from tables import Spread, add_options, markdown, page, publish, ratios
from weights import BEATS, EFFICIENTNET, MODELS

HOURS = {EFFICIENTNET: (0.5, 2.0), BEATS: (0.05, 0.25)}
SMALL_HOURS = {EFFICIENTNET: (0.1, 0.5), BEATS: (1 / 60, 0.05)}


def on_cores(n: int, command: Command) -> Command:
    """Bind a command to the first ``n`` cores; Ray would otherwise count all cores of the machine."""
    argv = ["taskset", "--cpu-list", f"0-{n - 1}", *command.argv]
    env = {"RAY_OVERRIDE_RESOURCES": json.dumps({"CPU": n})}
    return Command(command.name, argv, command.output, dict(command.env) | env)


def pairs(workspace: Workspace, model: str, n_cores: list[int], *, small: bool) -> dict[int, ArchivePair]:
    short_h, long_h = (SMALL_HOURS if small else HOURS)[model]

    def job(n: int, name: str, folder: Path) -> Command:
        return on_cores(n, workspace.embed_command(name, folder, model))

    return {
        n: make_pair(
            workspace,
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
    workspace = Workspace.of(arguments, "cores")
    n_cores = [n for n in (1 << i for i in range(10)) if n <= (os.cpu_count() or 1)]
    by_cores = pairs(workspace, arguments.model, n_cores, small=arguments.small)
    tasks = {name: task for pair in by_cores.values() for name, task in pair.tasks().items()}
    results = run_rounds(tasks, 1 if arguments.small else arguments.rounds)
    one = by_cores[1].times_real_time(results)
    rows = []
    for n, pair in by_cores.items():
        assert pair.long.output is not None
        n_windows = last_run(pair.long.output)["windows_encoded"]
        rate = pair.times_real_time(results)
        end_to_end = [run.wall_s for run in results[pair.long.name]]
        rows.append(
            [
                str(n),
                *(Spread.of(rate).text(".0f"), ratios(rate, one).text(".2f"), Spread.of(end_to_end).text()),
                f"{n_windows:,}",
            ]
        )
    columns = ["cores", "steady state, × real time", "over one core", "long archive, wall s", "windows"]
    table = markdown(columns, rows)
    publish("cores", page(__doc__, table, [f"{arguments.model}, fp32."]), save=arguments.save)
    return 0


if __name__ == "__main__":
    sys.exit(main())

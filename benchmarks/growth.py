"""Cost of an hour of audio by size of the archive.

``python benchmarks/growth.py``

End to end, 1 h to 32 h of 48 kHz FLAC in files of a minute, EfficientNet-B0. Wall and CPU time per hour should fall
(the start-up is paid once) and then stay constant; memory should not grow.
"""

import argparse
import sys

from archive import Archive, add_cache_option
from harness import DRIVER, STORE, TOTAL, WORKERS, measure_all
from job import Workspace, last_run
from tables import Spread, add_options, markdown, page, publish
from weights import EFFICIENTNET

HOURS = (1.0, 4.0, 16.0, 32.0)
SMALL_HOURS = (0.1, 0.5)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hours", type=float, nargs="+", default=HOURS)
    add_options(parser, rounds=3)
    add_cache_option(parser)
    arguments = parser.parse_args()
    workspace = Workspace.of(arguments, "growth")
    hours = SMALL_HOURS if arguments.small else arguments.hours
    whole = Archive.of_hours(max(hours))
    commands = {
        h: workspace.embed_command(f"{h:g} h", workspace.recordings(whole, Archive.of_hours(h).n_files), EFFICIENTNET)
        for h in hours
    }
    results = measure_all(list(commands.values()), 1 if arguments.small else arguments.rounds)
    rows = []
    for h, command in commands.items():
        assert command.output is not None
        last_run(command.output)
        runs = results[command.name]
        rows.append(
            [
                f"{h:g}",
                Spread.of([run.wall_s for run in runs]).text(),
                Spread.of([run.wall_s / h for run in runs]).text(),
                Spread.of([run.cpu_s / h for run in runs]).text(),
                *(f"{max(run.peak_mb.get(role, 0) for run in runs):,.0f}" for role in (DRIVER, WORKERS, STORE, TOTAL)),
            ]
        )
    columns = ["hours", "wall s", "wall s per hour", "CPU s per hour"]
    table = markdown([*columns, *(f"peak MB: {role}" for role in (DRIVER, WORKERS, STORE, TOTAL))], rows)
    publish("growth", page(__doc__, table, [f"{EFFICIENTNET}, fp32."]), save=arguments.save)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What does an hour of audio cost when there are many? ``python benchmarks/growth.py``

End to end, 1 h to 32 h of 48 kHz FLAC in files of a minute, EfficientNet-B0: wall and CPU time per hour should fall
(the start is paid once) and then stay, memory should not grow.
"""

import argparse
import sys

from archive import Archive, add_cache_option
from harness import DRIVER, STORE, TOTAL, WORKERS, measure_all
from job import Workplace, last_run
from tables import Spread, add_options, markdown, page, publish, question
from weights import EFFICIENTNET

HOURS = (1.0, 4.0, 16.0, 32.0)
SMALL_HOURS = (0.1, 0.5)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hours", type=float, nargs="+", default=HOURS)
    add_options(parser, rounds=3)
    add_cache_option(parser)
    arguments = parser.parse_args()
    place = Workplace.of(arguments, "growth")
    hours = SMALL_HOURS if arguments.small else arguments.hours
    whole = Archive.of_hours(max(hours))
    commands = {
        h: place.embed(f"{h:g} h", place.recordings(whole, Archive.of_hours(h).n_files), EFFICIENTNET) for h in hours
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
    publish("growth", page(question(__doc__), table, [f"{EFFICIENTNET}, fp32."]), save=arguments.save)
    return 0


if __name__ == "__main__":
    sys.exit(main())

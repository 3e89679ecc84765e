"""What do two models cost in one run, against a run for each? ``python benchmarks/models.py``

Recordings are fetched, decoded and resampled once, and Ray starts once. How much that is depends on how fast the
models are: two EfficientNets, the fastest there are, gain most.
"""

import argparse
import sys
from dataclasses import replace

from archive import Archive, add_cache_option
from harness import Command, Measured, measure, remove, rounds
from job import Workplace, last_run
from tables import Spread, add_options, markdown, page, publish, question, ratios
from weights import EFFICIENTNET, checkpoint

OTHER = "esp_aves2_effnetb0_bio"
MODELS = (EFFICIENTNET, OTHER)
TOGETHER, APART = "one run", "a run for each"
HOURS, SMALL_HOURS = 2.0, 0.1


def both(commands: list[Command]) -> Measured:
    """One after the other, as one: times add up, of memory the most counts."""
    runs = [measure(command) for command in commands]
    peak_mb = {role: max(run.peak_mb.get(role, 0.0) for run in runs) for run in runs for role in run.peak_mb}
    return Measured(sum(run.wall_s for run in runs), sum(run.cpu_s for run in runs), peak_mb)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hours", type=float, default=HOURS)
    add_options(parser, rounds=3)
    add_cache_option(parser)
    arguments = parser.parse_args()
    place = Workplace.of(arguments, "models")
    hours = SMALL_HOURS if arguments.small else arguments.hours
    folder = place.recordings(Archive.of_hours(hours))
    weights = str(checkpoint(EFFICIENTNET, place.cache))
    more = ("--model", OTHER, "--checkpoint", weights)
    together = place.embed(TOGETHER, folder, EFFICIENTNET, *more)
    apart = [
        replace(command, argv=[OTHER if word == EFFICIENTNET and at else word for word in command.argv])
        for at, command in enumerate(place.embed(f"alone {i}", folder, EFFICIENTNET) for i in range(len(MODELS)))
    ]
    tasks = {TOGETHER: lambda: measure(together), APART: lambda: both(apart)}
    results = rounds(tasks, 1 if arguments.small else arguments.rounds)
    assert together.output is not None
    for model in MODELS:
        last_run(together.output / f"model={model}")
    walls = {name: [run.wall_s for run in runs] for name, runs in results.items()}
    table = markdown(
        ["", "wall s", "CPU s", "over a run for each, wall"],
        [
            [
                name,
                Spread.of(walls[name]).text(),
                Spread.of([run.cpu_s for run in runs]).text(),
                ratios(walls[name], walls[APART]).text(".2f"),
            ]
            for name, runs in results.items()
        ],
    )
    for command in (together, *apart):
        if command.output is not None:
            remove(command.output)
    notes = [f"{hours:g} h of 48 kHz FLAC, {' and '.join(MODELS)}, fp32, windows of 5 s."]
    publish("models", page(question(__doc__), table, notes), save=arguments.save)
    return 0


if __name__ == "__main__":
    sys.exit(main())

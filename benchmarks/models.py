"""Cost of two models in one run, compared with one run per model.

``python benchmarks/models.py``

In one run, recordings are fetched, decoded and resampled once, and Ray starts once. The gain depends on the speed of
the models: two EfficientNets, the fastest models, gain most.
"""

import argparse
import sys
from dataclasses import replace

from archive import Archive, add_cache_option
from harness import Command, Measurement, measure, remove, run_rounds
from job import Workspace, last_run
from tables import Spread, add_options, markdown, page, publish, ratios
from weights import EFFICIENTNET, make_checkpoint

OTHER = "esp_aves2_effnetb0_bio"
MODELS = (EFFICIENTNET, OTHER)
TOGETHER, APART = "one run", "one run per model"
HOURS, SMALL_HOURS = 2.0, 0.1


def measure_in_sequence(commands: list[Command]) -> Measurement:
    """Measure commands one after the other; times are summed, of memory the maximum counts."""
    runs = [measure(command) for command in commands]
    peak_mb = {role: max(run.peak_mb.get(role, 0.0) for run in runs) for run in runs for role in run.peak_mb}
    return Measurement(sum(run.wall_s for run in runs), sum(run.cpu_s for run in runs), peak_mb)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hours", type=float, default=HOURS)
    add_options(parser, rounds=3)
    add_cache_option(parser)
    arguments = parser.parse_args()
    workspace = Workspace.of(arguments, "models")
    hours = SMALL_HOURS if arguments.small else arguments.hours
    folder = workspace.recordings(Archive.of_hours(hours))
    weights = str(make_checkpoint(EFFICIENTNET, workspace.cache))
    more = ("--model", OTHER, "--checkpoint", weights)
    together = workspace.embed_command(TOGETHER, folder, EFFICIENTNET, *more)
    apart = [
        replace(command, argv=[OTHER if word == EFFICIENTNET and at else word for word in command.argv])
        for at, command in enumerate(
            workspace.embed_command(f"alone {i}", folder, EFFICIENTNET) for i in range(len(MODELS))
        )
    ]
    tasks = {TOGETHER: lambda: measure(together), APART: lambda: measure_in_sequence(apart)}
    results = run_rounds(tasks, 1 if arguments.small else arguments.rounds)
    assert together.output is not None
    for model in MODELS:
        last_run(together.output / f"model={model}")
    walls = {name: [run.wall_s for run in runs] for name, runs in results.items()}
    table = markdown(
        ["", "wall s", "CPU s", "wall, over one run per model"],
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
    publish("models", page(__doc__, table, notes), save=arguments.save)
    return 0


if __name__ == "__main__":
    sys.exit(main())

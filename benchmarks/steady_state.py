"""Rate of the running job as a share of the rate that the cores permit.

``python benchmarks/steady_state.py``

The rate is the difference between a long and a short archive, which excludes start and end; the ceiling
(``ceiling.py``) is measured in the same rounds. The table also has the share of time in which each stage was busy, and
the peak memory of each role.
"""

import argparse
import os
import sys
from collections.abc import Callable
from typing import Any

from alone import combined_rate, decode_rate, encode_rate
from archive import Archive, add_cache_option
from ceiling import SHORT_NAMES
from harness import DRIVER, STORE, TOTAL, WORKERS, Measurement, run_rounds
from job import WINDOW_S, ArchivePair, Workspace, last_run, make_pair
from tables import Spread, add_options, markdown, page, publish, ratios, verdict
from weights import BEATS, EFFICIENTNET, MODELS

GOAL = 0.92
STAGES = ("decode", "encode", "write")
LENGTHS = {EFFICIENTNET: (1.0, 8.0), BEATS: (0.1, 0.6)}  # hours, short and long
SMALL = {EFFICIENTNET: (0.1, 1.0), BEATS: (1 / 60, 0.1)}


class Case:
    """One model in one precision: runs over two archives, and the stages alone."""

    def __init__(self, workspace: Workspace, model: str, precision: str, *, small: bool) -> None:
        self.name = f"{SHORT_NAMES[model]}, {precision}"
        self._place, self._model, self._precision = workspace, model, precision
        self._seconds = 3.0 if small else 20.0
        short_h, long_h = (SMALL if small else LENGTHS)[model]
        self._archive = Archive.of_hours(long_h)
        self.pair: ArchivePair = make_pair(
            workspace,
            self.name,
            self._archive,
            Archive.of_hours(short_h).n_files,
            lambda name, folder: workspace.embed_command(name, folder, model, "--precision", precision),
        )

    def tasks(self) -> dict[str, Callable[[], Any]]:
        return self.pair.tasks() | {self.ceiling_name: self._ceiling}

    @property
    def ceiling_name(self) -> str:
        return f"{self.name}, ceiling"

    def _ceiling(self) -> float:
        """Return × real time of decoding and of the faster encoding: a process per core, or one with all cores."""
        n = os.cpu_count() or 1
        folder = self._place.recordings(self._archive)
        decode_x = decode_rate(self._place, folder, self._model, processes=n, seconds=self._seconds)
        layouts = {(n, 1), (1, n)}
        windows = [
            encode_rate(self._place, self._model, self._precision, processes=p, threads=t, seconds=self._seconds)
            for p, t in sorted(layouts)
        ]
        return combined_rate(max(windows) * WINDOW_S, decode_x)

    def row(self, results: dict[str, list[Any]]) -> list[str]:
        reached = self.pair.times_real_time(results)
        long: list[Measurement] = results[self.pair.long.name]
        assert self.pair.long.output is not None
        busy = last_run(self.pair.long.output)["busy_share"]
        return [
            self.name,
            Spread.of(results[self.ceiling_name]).text(".0f"),
            Spread.of(reached).text(".0f"),
            self.share(results).text(".2f"),
            *(f"{busy.get(stage, 0):.2f}" for stage in STAGES),
            *(f"{max(run.peak_mb.get(role, 0) for run in long):,.0f}" for role in (DRIVER, WORKERS, STORE, TOTAL)),
        ]

    def share(self, results: dict[str, list[Any]]) -> Spread:
        return ratios(self.pair.times_real_time(results), results[self.ceiling_name])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=MODELS, nargs="+", default=MODELS)
    parser.add_argument("--precision", choices=("fp32", "bf16"), nargs="+", default=("fp32",))
    add_options(parser, rounds=3)
    add_cache_option(parser)
    arguments = parser.parse_args()
    workspace = Workspace.of(arguments, "steady-state")
    models = [EFFICIENTNET] if arguments.small else arguments.model
    cases = [Case(workspace, model, p, small=arguments.small) for model in models for p in arguments.precision]
    tasks = {name: task for case in cases for name, task in case.tasks().items()}
    results = run_rounds(tasks, 1 if arguments.small else arguments.rounds)
    table = markdown(
        [
            *("", "ceiling, × real time", "steady state, × real time", "share of the ceiling"),
            *(f"{stage} busy" for stage in STAGES),
            *(f"peak MB: {role}" for role in (DRIVER, WORKERS, STORE, TOTAL)),
        ],
        [case.row(results) for case in cases],
    )
    notes = [
        "48 kHz FLAC in files of a minute, "
        + "; ".join(f"{case.name}: {case.pair.more_audio_s / 3600:.2g} h more" for case in cases)
        + f"; windows of {WINDOW_S:g} s.",
        "Busy shares are those of all workers of a stage since the first window, in the last round; they include the "
        "time that a stage waits.",
        *(f"{case.name}: {verdict(case.share(results).median, GOAL)}." for case in cases if not arguments.small),
    ]
    publish("steady-state", page(__doc__, table, notes), save=arguments.save)
    return 0


if __name__ == "__main__":
    sys.exit(main())

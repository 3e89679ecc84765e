"""How much of what the cores allow does the job reach once it runs? ``python benchmarks/steady_state.py``

Its rate is the difference between a long and a short archive, which leaves out start and end; the ceiling
(``ceiling.py``) is measured in the same rounds. Also what share of its time each stage was busy, and the peak memory of
each role.
"""

import argparse
import os
import sys
from collections.abc import Callable
from typing import Any

from alone import both, decode_rate, encode_rate
from archive import Archive, add_cache_option
from ceiling import SHORT
from harness import DRIVER, STORE, TOTAL, WORKERS, Measured, rounds
from job import WINDOW_S, Pair, Workplace, last_run, pair
from tables import Spread, add_options, markdown, page, publish, question, ratios, verdict
from weights import BEATS, EFFICIENTNET, MODELS

GOAL = 0.92
STAGES = ("decode", "encode", "write")
LENGTHS = {EFFICIENTNET: (1.0, 8.0), BEATS: (0.1, 0.6)}  # hours, short and long
SMALL = {EFFICIENTNET: (0.1, 1.0), BEATS: (1 / 60, 0.1)}


class Case:
    """One model in one precision: the job's two archives, and the stages alone."""

    def __init__(self, place: Workplace, model: str, precision: str, *, small: bool) -> None:
        self.name = f"{SHORT[model]}, {precision}"
        self._place, self._model, self._precision = place, model, precision
        self._seconds = 3.0 if small else 20.0
        short_h, long_h = (SMALL if small else LENGTHS)[model]
        self._archive = Archive.of_hours(long_h)
        self.pair: Pair = pair(
            place,
            self.name,
            self._archive,
            Archive.of_hours(short_h).n_files,
            lambda name, folder: place.embed(name, folder, model, "--precision", precision),
        )

    def tasks(self) -> dict[str, Callable[[], Any]]:
        return self.pair.tasks() | {self.ceiling_name: self._ceiling}

    @property
    def ceiling_name(self) -> str:
        return f"{self.name}, ceiling"

    def _ceiling(self) -> float:
        """× real time: the better of one process per core and one process with all of them, and decoding."""
        n = os.cpu_count() or 1
        folder = self._place.recordings(self._archive)
        decode_x = decode_rate(self._place, folder, self._model, processes=n, seconds=self._seconds)
        layouts = {(n, 1), (1, n)}
        windows = [
            encode_rate(self._place, self._model, self._precision, processes=p, threads=t, seconds=self._seconds)
            for p, t in sorted(layouts)
        ]
        return both(max(windows) * WINDOW_S, decode_x)

    def row(self, results: dict[str, list[Any]]) -> list[str]:
        reached = self.pair.times_real_time(results)
        long: list[Measured] = results[self.pair.long.name]
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
    place = Workplace.of(arguments, "steady-state")
    models = [EFFICIENTNET] if arguments.small else arguments.model
    cases = [Case(place, model, p, small=arguments.small) for model in models for p in arguments.precision]
    tasks = {name: task for case in cases for name, task in case.tasks().items()}
    results = rounds(tasks, 1 if arguments.small else arguments.rounds)
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
        "Busy shares are of all workers of a stage since the first window, of the last run; a stage may wait inside.",
        *(f"{case.name}: {verdict(case.share(results).median, GOAL)}." for case in cases if not arguments.small),
    ]
    publish("steady-state", page(question(__doc__), table, notes), save=arguments.save)
    return 0


if __name__ == "__main__":
    sys.exit(main())

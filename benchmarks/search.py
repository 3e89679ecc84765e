"""Time of an exact search through a million windows.

``python benchmarks/search.py``

Runs jobs.search, including the start of Ray, over an output of 10⁶ windows of 768 numbers in the job's layout. The
query is a stored window, so that no model is loaded.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from harness import DRIVER, TOTAL, WORKERS, Command, log, measure_all
from listing import recording_name
from resume import DECODE_TASKS, OutputSpec, write_output
from tables import Spread, add_options, markdown, page, publish

N_WINDOWS, SMALL_WINDOWS = 1_000_000, 20_000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser, rounds=3)
    arguments = parser.parse_args()
    n_windows, n_rounds = (SMALL_WINDOWS, 1) if arguments.small else (N_WINDOWS, arguments.rounds)
    spec = OutputSpec(12, 4096 if arguments.small else 32_768, dim=768)
    with tempfile.TemporaryDirectory(prefix="search-") as folder:
        log(f"writing {n_windows:,} windows")
        write_output(spec, n_windows // spec.n_windows_each // DECODE_TASKS * DECODE_TASKS, Path(folder))
        like = f"s3://a-bucket/a-rather-long-prefix/{recording_name(7)}"
        argv = [sys.executable, "-m", "jobs.search", folder, "--like", like, "--at", "4"]
        results = measure_all([Command(f"{k} nearest", [*argv, "--k", str(k)]) for k in (10, 1000)], n_rounds)
    rows = [
        [title, Spread.of([run.wall_s for run in runs]).text(), Spread.of([run.cpu_s for run in runs]).text()]
        + [f"{max(run.peak_mb.get(role, 0) for run in runs):,.0f}" for role in (DRIVER, WORKERS, TOTAL)]
        for title, runs in results.items()
    ]
    table = markdown(["", "s", "s of CPU", "driver MB", "workers MB", "in all MB"], rows)
    publish("search", page(__doc__, table, [f"{n_windows:,} windows of 768 numbers."]), save=arguments.save)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Time to pool a million windows.

``python benchmarks/pool.py``

Runs jobs.pool, including the start of Ray, over an output of 10⁶ windows of 768 numbers in the job's layout: recordings
of a minute (12 windows), and of a day (17,280 windows), whose windows are in many shards.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from harness import DRIVER, STORE, TOTAL, WORKERS, Command, log, measure_all
from resume import DECODE_TASKS, OutputSpec, write_output
from tables import Spread, add_options, markdown, page, publish

N_WINDOWS, SMALL_WINDOWS = 1_000_000, 20_000
CASES = {"minutes": OutputSpec(12, dim=768), "days": OutputSpec(17_280, dim=768)}
SMALL_CASES = {"minutes": OutputSpec(12, 4096, dim=768), "days": OutputSpec(1_728, 4096, dim=768)}
POOLINGS = ("mean", "mean+max+std", "sequence")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser, rounds=3)
    arguments = parser.parse_args()
    n_windows, cases, n_rounds = N_WINDOWS, CASES, arguments.rounds
    if arguments.small:
        n_windows, cases, n_rounds = SMALL_WINDOWS, SMALL_CASES, 1
    with tempfile.TemporaryDirectory(prefix="pool-") as folder:
        commands = []
        for name, spec in cases.items():
            root = Path(folder, name)
            n_recordings = max(1, round(n_windows / spec.n_windows_each / DECODE_TASKS)) * DECODE_TASKS
            log(f"writing {n_recordings:,} recordings of {spec.n_windows_each:,} windows")
            write_output(spec, n_recordings, root)
            for pooling in POOLINGS:
                argv = [sys.executable, "-m", "jobs.pool", str(root), "--pooling", pooling]
                commands.append(Command(f"{name}, {pooling}", argv, root / "recordings" / pooling))
        results = measure_all(commands, n_rounds)
    rows = [
        [name, Spread.of([run.wall_s for run in runs]).text(), Spread.of([run.cpu_s for run in runs]).text()]
        + [f"{max(run.peak_mb.get(role, 0) for run in runs):,.0f}" for role in (DRIVER, WORKERS, STORE, TOTAL)]
        for name, runs in results.items()
    ]
    table = markdown(["", "s", "s of CPU", "driver MB", "workers MB", "store MB", "in all MB"], rows)
    publish("pool", page(__doc__, table, [f"{n_windows:,} windows of 768 numbers."]), save=arguments.save)
    return 0


if __name__ == "__main__":
    sys.exit(main())

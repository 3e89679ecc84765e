"""How long, and how much memory, does it take to export a million windows? ``python benchmarks/export.py``

The job itself, to each format that this environment can write, over an output of 10⁶ windows of 768 numbers as
jobs.embed writes them; opensoundscape's CSV, which nobody reads at that length, over a tenth of it.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from harness import TOTAL, Command, measure_all, say
from resume import DECODE_TASKS, Case, write_output
from tables import Spread, add_options, markdown, page, publish, question

N_WINDOWS, SMALL_WINDOWS = 1_000_000, 20_000
SHARES = {"npy": 1.0, "pt": 1.0, "lancedb": 1.0, "opensoundscape": 0.1}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser, rounds=1)
    arguments = parser.parse_args()
    n_windows, n_rounds = (SMALL_WINDOWS, 1) if arguments.small else (N_WINDOWS, arguments.rounds)
    case = Case(12, 4096 if arguments.small else 32_768, dim=768)
    with tempfile.TemporaryDirectory(prefix="export-") as folder:
        n_rows, commands = {}, []
        for share in sorted(set(SHARES.values())):
            n_recordings = round(n_windows * share) // case.n_windows_each // DECODE_TASKS * DECODE_TASKS
            n_rows[share] = n_recordings * case.n_windows_each
            say(f"writing {n_rows[share]:,} windows")
            write_output(case, n_recordings, Path(folder, str(share)))
        for to, share in SHARES.items():
            output = Path(folder, to)
            argv = [sys.executable, "-m", "jobs.export", f"{folder}/{share}", "--to", to, str(output)]
            commands.append(Command(to, argv, output))
        results = measure_all(commands, n_rounds)
    rows = [
        [
            f"{to}, {n_rows[SHARES[to]]:,} windows",
            Spread.of([run.wall_s for run in runs]).text(),
            Spread.of([run.cpu_s for run in runs]).text(),
            f"{max(run.peak_mb.get(TOTAL, 0) for run in runs):,.0f}",
        ]
        for to, runs in results.items()
    ]
    table = markdown(["", "s", "s of CPU", "MB"], rows)
    publish("export", page(question(__doc__), table, []), save=arguments.save)
    return 0


if __name__ == "__main__":
    sys.exit(main())

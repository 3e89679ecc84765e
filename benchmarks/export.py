"""Time and memory to export a million windows.

``python benchmarks/export.py``

Runs jobs.export to each format that this environment can write, over 10⁶ windows of 768 numbers in the layout of
jobs.embed. opensoundscape's CSV is exported from a tenth of the windows, because nobody reads it at full length.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from harness import TOTAL, Command, log, measure_all
from resume import DECODE_TASKS, OutputSpec, write_output
from tables import Spread, add_options, markdown, page, publish

N_WINDOWS, SMALL_WINDOWS = 1_000_000, 20_000
SHARES = {"npy": 1.0, "pt": 1.0, "lancedb": 1.0, "opensoundscape": 0.1}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser, rounds=1)
    arguments = parser.parse_args()
    n_windows, n_rounds = (SMALL_WINDOWS, 1) if arguments.small else (N_WINDOWS, arguments.rounds)
    spec = OutputSpec(12, 4096 if arguments.small else 32_768, dim=768)
    with tempfile.TemporaryDirectory(prefix="export-") as folder:
        n_rows, commands = {}, []
        for share in sorted(set(SHARES.values())):
            n_recordings = round(n_windows * share) // spec.n_windows_each // DECODE_TASKS * DECODE_TASKS
            n_rows[share] = n_recordings * spec.n_windows_each
            log(f"writing {n_rows[share]:,} windows")
            write_output(spec, n_recordings, Path(folder, str(share)))
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
    publish("export", page(__doc__, table, []), save=arguments.save)
    return 0


if __name__ == "__main__":
    sys.exit(main())

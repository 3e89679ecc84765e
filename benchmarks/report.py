"""Time to build a page over a million windows.

``python benchmarks/report.py``

Runs jobs.report from the command to its end, over outputs in the job's layout: 10⁶ windows of 768 numbers, and a
quarter of a million of 1,280. The page draws 5,000 and 10,000 of the windows, or so few that UMAP is left out.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from embedding.output.store import Store
from harness import TOTAL, Command, log, measure_all
from resume import DECODE_TASKS, OutputSpec, write_output
from tables import Spread, add_options, markdown, page, publish

CASES = {"10⁶ of 768": (1_000_000, OutputSpec(12, dim=768)), "250,000 of 1,280": (250_000, OutputSpec(12, dim=1280))}
SMALL_CASES = {"20,000 of 768": (20_000, OutputSpec(12, 4096, dim=768))}
DRAWN = {"10⁶ of 768": (9, 5_000, 10_000), "250,000 of 1,280": (9, 5_000), "20,000 of 768": (9, 500)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser, rounds=3)
    arguments = parser.parse_args()
    cases, n_rounds = (SMALL_CASES, 1) if arguments.small else (CASES, arguments.rounds)
    with tempfile.TemporaryDirectory(prefix="report-") as folder:
        commands, pages = [], {}
        for name, (n_windows, spec) in cases.items():
            root = Path(folder, name)
            log(f"writing {n_windows:,} windows of {spec.dim:,} numbers")
            write_output(spec, n_windows // spec.n_windows_each // DECODE_TASKS * DECODE_TASKS, root)
            store = Store(str(root), "{}")
            store.write_json("run.json", {"settings": {}})
            store.write_json("report.json", {"state": "complete", "output": store.read().totals(), "runs": []})
            for n_drawn in DRAWN[name]:
                title = f"{name}, {n_drawn:,} drawn"
                pages[title] = Path(folder, f"{len(pages)}.html")
                options = ["--html", str(pages[title]), "--sample", str(n_drawn)]
                commands.append(Command(title, [sys.executable, "-m", "jobs.report", str(root), *options]))
        results = measure_all(commands, n_rounds)
        sizes = {title: path.stat().st_size / 1e6 for title, path in pages.items()}
    rows = [
        [
            title,
            Spread.of([run.wall_s for run in runs]).text(),
            Spread.of([run.cpu_s for run in runs]).text(),
            f"{max(run.peak_mb[TOTAL] for run in runs):,.0f}",
            f"{sizes[title]:.1f}",
        ]
        for title, runs in results.items()
    ]
    table = markdown(["", "s", "s of CPU", "MB of memory", "MB of page"], rows)
    publish("report", page(__doc__, table, []), save=arguments.save)
    return 0


if __name__ == "__main__":
    sys.exit(main())

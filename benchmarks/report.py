"""How long does a page over a million windows take? ``python benchmarks/report.py``

The job itself, from the command to its end, over outputs as the job writes them: 10⁶ windows of 768 numbers, and a
quarter of a million of 1,280; drawn are 5,000 and 10,000 of them, or so few that UMAP is left out.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from embedding.output.store import Store
from harness import TOTAL, Command, measure_all, say
from resume import DECODE_TASKS, Case, write_output
from tables import Spread, add_options, markdown, page, publish, question

CASES = {"10⁶ of 768": (1_000_000, Case(12, dim=768)), "250,000 of 1,280": (250_000, Case(12, dim=1280))}
SMALL_CASES = {"20,000 of 768": (20_000, Case(12, 4096, dim=768))}
DRAWN = {"10⁶ of 768": (9, 5_000, 10_000), "250,000 of 1,280": (9, 5_000), "20,000 of 768": (9, 500)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser, rounds=3)
    arguments = parser.parse_args()
    cases, n_rounds = (SMALL_CASES, 1) if arguments.small else (CASES, arguments.rounds)
    with tempfile.TemporaryDirectory(prefix="report-") as folder:
        commands, pages = [], {}
        for name, (n_windows, case) in cases.items():
            root = Path(folder, name)
            say(f"writing {n_windows:,} windows of {case.dim:,} numbers")
            write_output(case, n_windows // case.n_windows_each // DECODE_TASKS * DECODE_TASKS, root)
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
    publish("report", page(question(__doc__), table, []), save=arguments.save)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Cost of a window when windows overlap by half.

``python benchmarks/overlap.py``

Windows per second with hop = window/2, relative to hop = window, in the steady state: the difference between a long and
a short archive. Twice as many windows come from the same audio, so the cost of decoding per window is halved, and the
rate should not fall.
"""

import argparse
import sys

from archive import Archive, add_cache_option
from harness import run_rounds
from job import WINDOW_S, Workspace, last_run, make_pair
from tables import Spread, add_options, markdown, page, publish, ratios, verdict
from weights import EFFICIENTNET, MODELS

GOAL = 0.95
HOURS = (0.5, 3.0)
SMALL_HOURS = (0.1, 0.6)
HOPS_S = (WINDOW_S, WINDOW_S / 2)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=MODELS, default=EFFICIENTNET)
    parser.add_argument("--hours", type=float, nargs=2, default=HOURS, metavar=("SHORT", "LONG"))
    add_options(parser, rounds=3)
    add_cache_option(parser)
    arguments = parser.parse_args()
    workspace = Workspace.of(arguments, "overlap")
    short_h, long_h = SMALL_HOURS if arguments.small else arguments.hours
    by_hop = {
        hop_s: make_pair(
            workspace,
            f"hop {hop_s:g} s",
            Archive.of_hours(long_h),
            Archive.of_hours(short_h).n_files,
            lambda name, folder, hop_s=hop_s: workspace.embed_command(
                name, folder, arguments.model, "--hop-s", str(hop_s)
            ),
        )
        for hop_s in HOPS_S
    }
    tasks = {name: task for pair in by_hop.values() for name, task in pair.tasks().items()}
    results = run_rounds(tasks, 1 if arguments.small else arguments.rounds)
    windows = {hop_s: [x / hop_s for x in pair.times_real_time(results)] for hop_s, pair in by_hop.items()}
    rows = []
    for hop_s, pair in by_hop.items():
        assert pair.long.output is not None
        rows.append(
            [
                f"{hop_s:g} s",
                f"{last_run(pair.long.output)['windows_encoded']:,}",
                Spread.of([run.wall_s for run in results[pair.long.name]]).text(),
                Spread.of(windows[hop_s]).text(),
                ratios(windows[hop_s], windows[WINDOW_S]).text(".2f"),
            ]
        )
    table = markdown(["hop", "windows", "wall s", "windows/s, steady state", "over no overlap"], rows)
    notes = [f"{long_h:g} h against {short_h:g} h of 48 kHz FLAC, {arguments.model}, fp32, windows of {WINDOW_S:g} s."]
    if not arguments.small:
        notes.append(f"Over no overlap: {verdict(ratios(windows[HOPS_S[1]], windows[WINDOW_S]).median, GOAL)}.")
    publish("overlap", page(__doc__, table, notes), save=arguments.save)
    return 0


if __name__ == "__main__":
    sys.exit(main())

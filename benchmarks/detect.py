"""Time and memory of detections over a million windows and more.

``python benchmarks/detect.py``

Runs jobs.detect, including the start of Ray, with a probe of 100 classes over outputs of windows of 768 numbers, in
recordings of a minute and of a day. Rows of two sizes give the slope, from which ten million windows follow; memory
should not grow with them.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

from harness import DRIVER, STORE, TOTAL, WORKERS, Command, log, measure_all
from resume import DECODE_TASKS, OutputSpec, write_output
from tables import Spread, add_options, markdown, page, publish

N_CLASSES, DIM = 100, 768
SIZES, SMALL_SIZES = (500_000, 2_000_000), (20_000, 40_000)
GOAL_WINDOWS, GOAL_S = 10_000_000, 8 * 60
CASES = {"minutes": OutputSpec(12, dim=DIM), "days": OutputSpec(17_280, dim=DIM)}
SMALL_CASES = {"minutes": OutputSpec(12, 4096, dim=DIM), "days": OutputSpec(1_728, 4096, dim=DIM)}


def write_probe(path: Path) -> None:
    """Write a probe by which about one window of a hundred has each label."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((N_CLASSES, DIM)) / np.sqrt(DIM)
    np.savez(path, weight=weight, bias=np.full(N_CLASSES, -2.3), classes=[f"class {n}" for n in range(N_CLASSES)])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser, rounds=2)
    arguments = parser.parse_args()
    sizes, cases, n_rounds = SIZES, CASES, arguments.rounds
    if arguments.small:
        sizes, cases, n_rounds = SMALL_SIZES, SMALL_CASES, 1
    with tempfile.TemporaryDirectory(prefix="detect-") as folder:
        probe = Path(folder, "probe.npz")
        write_probe(probe)
        commands = {}
        for name, spec in cases.items():
            for size in sizes:
                root = Path(folder, f"{name}-{size}")
                n_recordings = max(1, round(size / spec.n_windows_each / DECODE_TASKS)) * DECODE_TASKS
                log(f"writing {n_recordings:,} recordings of {spec.n_windows_each:,} windows")
                write_output(spec, n_recordings, root)
                argv = [sys.executable, "-m", "jobs.detect", str(root), "--probe", str(probe)]
                command = Command(f"{name}, {size:,}", argv, root / "detections")
                commands[name, n_recordings * spec.n_windows_each] = command
        results = measure_all(list(commands.values()), n_rounds)
    rows, notes = [], []
    for (name, n_windows), command in commands.items():
        runs = results[command.name]
        memory = (f"{max(run.peak_mb.get(role, 0) for run in runs):,.0f}" for role in (DRIVER, WORKERS, STORE, TOTAL))
        wall_s = Spread.of([run.wall_s for run in runs])
        rows.append([name, f"{n_windows:,}", wall_s.text(), Spread.of([run.cpu_s for run in runs]).text(), *memory])
    for name in cases:
        (few, few_s), (many, many_s) = (
            (n, Spread.of([run.wall_s for run in results[command.name]]).median)
            for (case, n), command in commands.items()
            if case == name
        )
        slope_s = (many_s - few_s) / (many - few)
        goal_s = few_s + slope_s * (GOAL_WINDOWS - few)
        verdict = "reached" if goal_s <= GOAL_S else "missed"
        notes.append(f"{name}: {GOAL_WINDOWS:,} windows by the slope in {goal_s:,.0f} s, goal {GOAL_S} s: {verdict}.")
    table = markdown(["", "windows", "s", "s of CPU", "driver MB", "workers MB", "store MB", "in all MB"], rows)
    publish("detect", page(__doc__, table, [f"{N_CLASSES} classes, {DIM} numbers.", *notes]), save=arguments.save)
    return 0


if __name__ == "__main__":
    sys.exit(main())

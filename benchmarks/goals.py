"""The goals of runs on one machine: start-up, short runs, the end, speed and memory.

``python benchmarks/goals.py --case effnet``

All rows of a case come from one measurement: every round runs each command once, in turns. Times within a run are those
of ``timeline_s`` in ``report.json``. The reference loop is avex used plainly, one window at a time
(``peers/reference_loop.py``). Further goals have benchmarks of their own: ``steady_state.py`` and ``s3_latency.py``.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from against_peers import CASES as PEER_CASES
from against_peers import PEERS, REFERENCE, peer_command
from archive import Archive, add_cache_option
from embedding.encoding.cpu_products import lacks_products
from harness import Command, measure, run_rounds
from job import WINDOW_S, Workspace, last_run
from start_up import program_s
from tables import Spread, add_options, markdown, page, publish, ratios, verdict
from weights import BEATS, EFFICIENTNET, make_checkpoint

CLIPS = Archive("flac", 48_000, 18, 10.0)
# Prints the peak of its own memory in MB, after passes of 16 windows.
MEMORY = """
from alone import settings_of
from embedding.encoding.encoder_loading import load_encoders
import numpy as np
settings = settings_of({task!r})
(encoder,) = load_encoders([settings], 1)
encoder.warm_up(16)
windows = np.random.default_rng(0).normal(0, 0.1, (64, settings.windows.length)).astype(np.float32)
encoder.encode(windows, np.full(64, settings.windows.length))
from pathlib import Path
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
seconds = int(peak.split()[1]) / 1e3
"""


@dataclass(frozen=True)
class Run:
    """One run of a command.

    Attributes:
        wall_s: Seconds from the start of the process to its exit.
        first_window_s: Seconds to the first window; 0 for a peer.
        end_s: Seconds from the last window to the exit; 0 for a peer.
    """

    wall_s: float
    first_window_s: float = 0.0
    end_s: float = 0.0


@dataclass(frozen=True)
class Case:
    """Goals for one model.

    Attributes:
        model: The model.
        hours: Hours of audio.
        first_window_s: Goal for the time to the first window.
        over_loop: Goals for the speed over the reference loop, by precision.
        encoder_mb: Goal for the memory of an encoder.
    """

    model: str
    hours: float
    first_window_s: float
    over_loop: dict[str, float]
    encoder_mb: float


CASES = {
    "effnet": Case(EFFICIENTNET, 2.0, 7.0, {"fp32": 1.9}, 400.0),
    # With bf16 products 2.2 without AMX, 3.5 with it.
    "beats": Case(BEATS, 0.5, 8.0, {"fp32": 1.0, "bf16": 2.2, "int8": 2.2}, 900.0),
}
CLIPS_GOAL_S, END_GOAL_S = 13.0, 1.0


def run_job(command: Command) -> Run:
    wall_s = measure(command).wall_s
    assert command.output is not None
    steps = last_run(command.output)["timeline_s"]
    return Run(wall_s, steps["first_window"], wall_s - steps["last_window"])


def goal(value: float, most: float) -> str:
    return f"at most {most:g}: {'reached' if value <= most else 'missed'}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=CASES, default="effnet")
    add_options(parser, rounds=3)
    add_cache_option(parser)
    arguments = parser.parse_args()
    case = CASES[arguments.case]
    workspace = Workspace.of(arguments, "goals")
    archive = Archive.of_hours(0.05 if arguments.small else case.hours)
    folder, clips = workspace.recordings(archive), workspace.recordings(CLIPS)
    precisions = [precision for precision in case.over_loop if not lacks_products(precision)]

    tasks: dict[str, Callable[[], Run]] = {}
    for precision in precisions:
        command = workspace.embed_command(precision, folder, case.model, "--precision", precision)
        tasks[precision] = partial(run_job, command)
    tasks["clips"] = partial(run_job, workspace.embed_command("clips", clips, case.model))
    peer_case = next(each for each in PEER_CASES.values() if each.model == case.model)
    loop = peer_command(REFERENCE, PEERS[REFERENCE], folder, peer_case, workspace)
    tasks[REFERENCE] = lambda: Run(measure(loop).wall_s)
    results = run_rounds(tasks, 1 if arguments.small else arguments.rounds)

    def spread(name: str, attribute: str) -> Spread:
        return Spread.of([getattr(run, attribute) for run in results[name]])

    rows: list[Sequence[str]] = []

    def add(name: str, value: Spread, most: float, pattern: str = ".1f") -> None:
        rows.append([name, value.text(pattern), goal(value.median, most)])

    hours = f"{archive.audio_s / 3600:g} h"
    add(f"command to first window, {hours}, s", spread("fp32", "first_window_s"), case.first_window_s)
    add(f"command to prompt, {CLIPS}, s", spread("clips", "wall_s"), CLIPS_GOAL_S)
    add("last window to prompt, s", spread("fp32", "end_s"), END_GOAL_S)
    for precision in precisions:
        times = ratios([run.wall_s for run in results[REFERENCE]], [run.wall_s for run in results[precision]])
        reached = verdict(times.median, case.over_loop[precision])
        rows.append([f"{precision}: times as fast as the reference loop, {hours}", times.text(".2f"), reached])
    for name in (*precisions, REFERENCE):
        rows.append([f"{name}: command to prompt, s", spread(name, "wall_s").text(), ""])
    task = {"model": case.model, "precision": "fp32", "checkpoint": str(make_checkpoint(case.model, workspace.cache))}
    peak_mb = program_s(MEMORY.format(task=task), workspace.environment())
    add("memory of an encoder process, fp32, MB", Spread.of([peak_mb]), case.encoder_mb, ".0f")

    notes = [f"{archive}, {case.model}, windows of {WINDOW_S:g} s; medians of {len(results['fp32'])} (min–max)."]
    notes += [
        f"{precision} was left out: this CPU has no products of it, and computes as in fp32."
        for precision in case.over_loop
        if precision not in precisions
    ]
    table = markdown(["", "measured", "goal"], rows)
    publish(f"goals-{arguments.case}", page(__doc__, table, notes), save=arguments.save)
    return 0


if __name__ == "__main__":
    sys.exit(main())

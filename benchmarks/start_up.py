"""Time from the command to the first embedded window.

``python benchmarks/start_up.py``

All files are in the file cache, and the archive is a few clips. The timeline is ``timeline_s`` of ``report.json``.
Further rows are parts that can be measured alone, each in a process of its own; in the job some of them run at the same
time.
"""

import argparse
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from archive import Archive, add_cache_option
from ceiling import SHORT_NAMES
from harness import ROOT, Command, CommandError, measure, run_rounds
from job import WINDOW_S, Workspace, last_run
from tables import Spread, add_options, markdown, page, publish
from weights import EFFICIENTNET, MODELS, make_checkpoint

BAR = 40  # characters of the longest bar
CLIPS = Archive("wav", 48_000, 16, 3.0)
N_PACKAGES = 8

# Imports of the driver before it connects to Ray, and afterwards.
DRIVER_IMPORTS = "import jobs.embed, embedding.driver"
RAY_IMPORTS = "import embedding.ray_runtime.session, embedding.pipeline"
ENCODER_IMPORTS = "from embedding.encoding.encoder_loading import load_encoders"
CONNECT = """
from embedding.ray_runtime import session
from embedding import pipeline
began = time.perf_counter()
with session.session(verbose=False):
    seconds = time.perf_counter() - began
"""
LOAD = """
from alone import settings_of
from embedding.encoding.encoder_loading import load_encoders
settings = settings_of({task!r})
began = time.perf_counter()
load_encoders([settings], 1)
seconds = time.perf_counter() - began
"""


def job_timeline(command: Command) -> dict[str, float]:
    """Run a job; return the seconds from the start of the process to each step, and to its exit."""
    wall_s = measure(command).wall_s
    assert command.output is not None
    return last_run(command.output)["timeline_s"] | {"exit": wall_s}


def timeline(name: str, runs: Sequence[Mapping[str, float]]) -> str:
    """Return a table of the steps in their order, with a bar to the median of each."""
    steps = {step: Spread.of([run[step] for run in runs if step in run]) for step in runs[0]}
    longest = max(spread.median for spread in steps.values())
    rows = [
        [step, spread.text(".2f"), "█" * max(1, round(BAR * spread.median / longest))]
        for step, spread in sorted(steps.items(), key=lambda item: item[1].median)
    ]
    return markdown([f"{name}: step", "s", ""], rows)


def program_s(program: str, env: Mapping[str, str]) -> float:
    """Return the time in s that a Python program assigns to ``seconds``, or else the program's duration."""
    program = f"import time\nbegan = time.perf_counter()\nseconds = None\n{program}\n"
    program += "print('seconds', time.perf_counter() - began if seconds is None else seconds)"
    done = run_python([], program, env)
    return float(re.findall(r"^seconds (\S+)$", done.stdout, re.M)[-1])


def run_python(options: list[str], program: str, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    environment = os.environ | {"PYTHONPATH": paths} | dict(env)
    done = subprocess.run(
        [sys.executable, *options, "-c", program],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise CommandError(f"{program}\nended with exit code {done.returncode}:\n{done.stderr[-2000:]}")
    return done


def part_tasks(workspace: Workspace, model: str) -> dict[str, Callable[[], float]]:
    env = workspace.environment()
    task = {"model": model, "precision": "fp32", "checkpoint": str(make_checkpoint(model, workspace.cache))}
    return {
        "driver: imports, to the request": partial(program_s, DRIVER_IMPORTS, env),
        "driver: Ray imported": partial(program_s, RAY_IMPORTS, env),
        "driver: Ray started (session)": partial(program_s, CONNECT, env),
        f"actor: {SHORT_NAMES[model]}, OpenVINO imported": partial(program_s, ENCODER_IMPORTS, env),
        f"actor: {SHORT_NAMES[model]}, loaded": partial(program_s, LOAD.format(task=task), env),
    }


def packages(env: Mapping[str, str]) -> str:
    """Return the packages with the slowest imports in the driver: time of a package's own modules in ms."""
    importtime = run_python(["-X", "importtime"], f"{DRIVER_IMPORTS}\n{RAY_IMPORTS}", env).stderr
    own = Counter[str]()
    for us, name in re.findall(r"^import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)$", importtime, re.M):
        own[name.partition(".")[0]] += int(us)
    largest = ", ".join(f"{name} {us / 1e3:.0f}" for name, us in own.most_common(N_PACKAGES))
    return f"Of {own.total() / 1e3:.0f} ms of the driver's imports (slower than usual, because traced): {largest}."


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=MODELS, nargs="+", default=MODELS)
    add_options(parser, rounds=5)
    add_cache_option(parser)
    arguments = parser.parse_args()
    workspace = Workspace.of(arguments, "start-up")
    clips = workspace.recordings(CLIPS)
    models = [EFFICIENTNET] if arguments.small else arguments.model
    jobs = {SHORT_NAMES[model]: partial(job_timeline, workspace.embed_command(model, clips, model)) for model in models}
    parts: dict[str, Callable[[], float]] = {}
    for model in models:
        parts |= part_tasks(workspace, model)
    n_rounds = 1 if arguments.small else arguments.rounds
    timelines = run_rounds(jobs, n_rounds)
    results = run_rounds(parts, n_rounds)
    tables = [timeline(name, runs) for name, runs in timelines.items()]
    rows = [[name, Spread.of(seconds).text(".2f")] for name, seconds in results.items()]
    tables.append(markdown(["alone", "s"], rows))
    notes = [f"{CLIPS}, windows of {WINDOW_S:g} s.", packages(workspace.environment())]
    publish("start-up", page(__doc__, "\n\n".join(tables), notes), save=arguments.save)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""How long from the command to the first window embedded? ``python benchmarks/start_up.py``

With everything in the file cache, on a few clips; ``started`` and ``first_window_after_s`` of ``report.json``. Below it
the parts that can be measured alone, each in a process of its own; some of them happen at the same time in the job.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from pathlib import Path

from archive import Archive, add_cache_option
from ceiling import SHORT
from harness import ROOT, Command, CommandError, measure, rounds
from job import WINDOW_S, Workplace, last_run
from tables import Spread, add_options, markdown, page, publish, question
from weights import EFFICIENTNET, MODELS, checkpoint

GOAL_S = 12.0
CLIPS = Archive("wav", 48_000, 16, 3.0)
N_PACKAGES = 8

# What the driver imports before it connects, and then.
DRIVER_IMPORTS = "import jobs.embed, embedding.driver"
RAY_IMPORTS = "import embedding.ray_runtime.session, embedding.pipeline"
ENCODER_IMPORTS = "from embedding.encoding.encoder import Encoder"
CONNECT = """
from embedding.ray_runtime import session
from embedding import pipeline
began = time.perf_counter()
with session.session(verbose=False):
    seconds = time.perf_counter() - began
"""
LOAD = """
from alone import settings_of
from embedding.encoding.devices import Cpu
from embedding.encoding.encoder import Encoder
settings = settings_of({task!r})
began = time.perf_counter()
Encoder(settings, Cpu(), 1)
seconds = time.perf_counter() - began
"""


def of_job(command: Command) -> float:
    """Seconds from the process' start to its first window."""
    launched_s = time.time()
    measure(command)
    assert command.output is not None
    run = last_run(command.output)
    begun_s = datetime.fromisoformat(run["started"]).timestamp()
    return begun_s + float(run["first_window_after_s"]) - launched_s


def of_program(program: str, env: Mapping[str, str]) -> float:
    """The seconds that a Python program says, which it assigns to ``seconds``; or all of it, started and ended."""
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


def parts(place: Workplace, model: str) -> dict[str, Callable[[], float]]:
    env = place.environment()
    task = {"model": model, "precision": "fp32", "checkpoint": str(checkpoint(model, place.cache))}
    return {
        "driver: imports, to the request": partial(of_program, DRIVER_IMPORTS, env),
        "driver: Ray imported": partial(of_program, RAY_IMPORTS, env),
        "driver: Ray started (session)": partial(of_program, CONNECT, env),
        f"actor: {SHORT[model]}, torch imported": partial(of_program, ENCODER_IMPORTS, env),
        f"actor: {SHORT[model]}, loaded (with avex)": partial(of_program, LOAD.format(task=task), env),
    }


def packages(env: Mapping[str, str]) -> str:
    """Return the slowest imports of the driver: ms of each package's own modules, by ``-X importtime``."""
    said = run_python(["-X", "importtime"], f"{DRIVER_IMPORTS}\n{RAY_IMPORTS}", env).stderr
    own = Counter[str]()
    for us, name in re.findall(r"^import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)$", said, re.M):
        own[name.partition(".")[0]] += int(us)
    largest = ", ".join(f"{name} {us / 1e3:.0f}" for name, us in own.most_common(N_PACKAGES))
    return f"Of {own.total() / 1e3:.0f} ms of the driver's imports (traced, so slower): {largest}."


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=MODELS, nargs="+", default=MODELS)
    add_options(parser, rounds=5)
    add_cache_option(parser)
    arguments = parser.parse_args()
    place = Workplace.of(arguments, "start-up")
    clips = place.recordings(CLIPS)
    models = [EFFICIENTNET] if arguments.small else arguments.model
    tasks: dict[str, Callable[[], float]] = {}
    for model in models:
        name = f"{SHORT[model]}: command to first window"
        tasks[name] = partial(of_job, place.embed(SHORT[model], clips, model))
    firsts = list(tasks)
    for model in models:
        tasks |= parts(place, model)
    results = rounds(tasks, 1 if arguments.small else arguments.rounds)
    table = markdown(["", "s"], [[name, Spread.of(seconds).text(".2f")] for name, seconds in results.items()])
    notes = [f"{CLIPS}, windows of {WINDOW_S:g} s.", packages(place.environment())]
    for name in firsts:
        median = Spread.of(results[name]).median
        notes.append(f"{name}: {median:.1f} s, goal {GOAL_S:g} s: {'reached' if median <= GOAL_S else 'missed'}.")
    publish("start-up", page(question(__doc__), table, notes), save=arguments.save)
    return 0


if __name__ == "__main__":
    sys.exit(main())

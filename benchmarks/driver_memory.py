"""Memory of the driver by number of recordings.

``python benchmarks/driver_memory.py``

The job runs over 10³ to 10⁶ recordings of 3 s (hard links to a hundred clips, names of 90 bytes): it lists, plans and
starts, and is stopped some time after its first windows. The result is the peak resident memory of the driver's
process, including its end. ``resume.py`` measures the share of a finished output, ``listing.py`` other listings.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from archive import Archive, add_cache_option
from harness import ROOT, Command, CommandError, log
from job import Workspace
from listing import recording_name
from tables import Spread, add_options, markdown, page, publish
from weights import EFFICIENTNET

LIMIT_MB = 600
COUNTS = (1_000, 10_000, 100_000, 1_000_000)
SMALL_COUNTS = (1_000, 10_000)
CLIPS = Archive("wav", 48_000, 100, 3.0)
RUN_ON_S = 30.0  # time from the first windows to the stop
SMALL_RUN_ON_S = 3.0
FIRST_WINDOWS_S = 900.0


def link(clips: Path, n: int, folder: Path) -> None:
    sources = sorted(path for path in clips.rglob("*") if path.is_file())
    for i in range(n):
        path = folder / recording_name(i)
        if not i % 1000:
            path.parent.mkdir(parents=True)
        os.link(sources[i % len(sources)], path)


def measure(command: Command, run_on_s: float) -> tuple[float, float]:
    """Return the driver's peak memory in MB, and the time until its report has windows.

    The report is written every ten seconds.

    Raises:
        CommandError: The command encoded no window.
    """
    assert command.output is not None
    shutil.rmtree(command.output, ignore_errors=True)
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | dict(command.env)
    peak_mb, first_s, stopped = 0.0, None, False
    began = time.monotonic()
    with tempfile.TemporaryFile("w+", errors="replace") as log_file:
        with subprocess.Popen(command.argv, cwd=ROOT, env=environment, stdout=log_file, stderr=log_file) as process:
            while process.poll() is None:
                peak_mb = max(peak_mb, resident_peak_mb(process.pid))
                passed_s = time.monotonic() - began
                if first_s is None and windows_encoded(command.output):
                    first_s = passed_s
                if not stopped and passed_s > (FIRST_WINDOWS_S if first_s is None else first_s + run_on_s):
                    process.send_signal(signal.SIGINT)
                    stopped = True
                time.sleep(0.1)
        if first_s is None:
            log_file.seek(0)
            raise CommandError(
                f"{command.name}: no window encoded, exit code {process.returncode}\n{log_file.read()[-3000:]}"
            )
    return peak_mb, first_s


def windows_encoded(output: Path) -> int:
    try:
        return json.loads((output / "report.json").read_text())["runs"][-1]["windows_encoded"]
    except (OSError, ValueError):
        return 0


def resident_peak_mb(pid: int) -> float:
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0.0
    return int(found[1]) * 1024 / 1e6 if found else 0.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recordings", type=int, nargs="+", default=COUNTS, metavar="N")
    add_options(parser, rounds=1)
    add_cache_option(parser)
    arguments = parser.parse_args()
    workspace = Workspace.of(arguments, "driver-memory")
    clips = workspace.recordings(CLIPS)
    rows = []
    for n in SMALL_COUNTS if arguments.small else arguments.recordings:
        with tempfile.TemporaryDirectory(prefix="recordings-", dir=arguments.cache) as folder:
            link(clips, n, Path(folder))
            command = workspace.embed_command(f"{n} recordings", folder, EFFICIENTNET)
            runs = []
            for _ in range(1 if arguments.small else arguments.rounds):
                log(command.name)
                runs.append(measure(command, SMALL_RUN_ON_S if arguments.small else RUN_ON_S))
        peaks, firsts = Spread.of([run[0] for run in runs]), Spread.of([run[1] for run in runs])
        rows.append([f"{n:,}", peaks.text(",.0f"), firsts.text(".0f")])
    worst = max(float(row[1].partition(" ")[0].replace(",", "")) for row in rows)
    table = markdown(["recordings", "driver, peak MB", "windows in the report after s"], rows)
    notes = [f"At most {worst:,.0f} MB, goal {LIMIT_MB} MB: {'reached' if worst <= LIMIT_MB else 'missed'}."]
    publish("driver-memory", page(__doc__, table, notes), save=arguments.save)
    return 0


if __name__ == "__main__":
    sys.exit(main())

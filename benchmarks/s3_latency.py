"""Cost of 60 ms more for every request to S3.

``python benchmarks/s3_latency.py``

The same recordings are read as local files, from an S3 server on loopback (``slow_s3.py``), and from one that waits
60 ms before each answer; outputs are local. The server runs on the same cores, unlike a real one: the second row shows
its cost.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil

from archive import Archive, add_cache_option
from harness import Command, Measurement, measure_all
from job import Workspace, last_run
from slow_s3 import BUCKET
from tables import Spread, add_options, markdown, page, publish, ratios, verdict
from weights import EFFICIENTNET

GOAL = 0.9
LATENCY_S = 0.06
LOCAL, FAST, SLOW = "local files", "S3 on loopback", f"S3 with {1000 * LATENCY_S:.0f} ms"
CASES = {
    "minutes": (Archive.of_hours(4), Archive.of_hours(0.1)),
    "clips": (Archive("wav", 48_000, 5_000, 3.0), Archive("wav", 48_000, 100, 3.0)),
    "long": (Archive("flac", 48_000, 2, 6 * 3600.0), Archive("flac", 48_000, 2, 600.0)),
}


@contextmanager
def serve(folder: Path, latency_s: float) -> Iterator[tuple[dict[str, str], psutil.Process]]:
    """Serve a folder as S3; yield the environment variables of its clients, and its process."""
    server = Path(__file__).with_name("slow_s3.py")
    with subprocess.Popen(
        [sys.executable, str(server), str(folder), str(latency_s)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:  # ends with its stdin
        assert process.stdout is not None
        env = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{process.stdout.readline().strip()}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "NO_PROXY": "127.0.0.1",
        }
        yield env, psutil.Process(process.pid)


def rows(commands: list[Command], results: dict[str, list[Measurement]]) -> list[list[str]]:
    local = [run.wall_s for run in results[LOCAL]]
    table_rows = []
    for command in commands:
        assert command.output is not None
        last_run(command.output)
        wall = [run.wall_s for run in results[command.name]]
        cpu = Spread.of([run.cpu_s for run in results[command.name]])
        table_rows.append([command.name, Spread.of(wall).text(), ratios(local, wall).text(".2f"), cpu.text(".0f")])
    return table_rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=CASES, default="minutes")
    add_options(parser, rounds=3)
    add_cache_option(parser)
    arguments = parser.parse_args()
    workspace = Workspace.of(arguments, "s3")
    archive = CASES[arguments.case][1 if arguments.small else 0]
    folder = workspace.recordings(archive)
    with ExitStack() as stack:
        fast_env, fast = stack.enter_context(serve(folder, 0.0))
        slow_env, slow = stack.enter_context(serve(folder, LATENCY_S))
        commands = [
            workspace.embed_command(LOCAL, folder, EFFICIENTNET),
            workspace.embed_command(FAST, f"s3://{BUCKET}/", EFFICIENTNET, env=fast_env),
            workspace.embed_command(SLOW, f"s3://{BUCKET}/", EFFICIENTNET, env=slow_env),
        ]
        results = measure_all(commands, 1 if arguments.small else arguments.rounds)
        server_cpu_s = [sum(server.cpu_times()[:2]) / len(results[LOCAL]) for server in (fast, slow)]
    table = markdown(["recordings from", "wall s", "local over it", "CPU s"], rows(commands, results))
    times = ratios([run.wall_s for run in results[LOCAL]], [run.wall_s for run in results[SLOW]])
    notes = [
        f"{archive}, {EFFICIENTNET}, fp32, end to end.",
        "CPU seconds are the job's; the servers took {:.1f} and {:.1f} s per run.".format(*server_cpu_s),
        *([] if arguments.small else [f"Local over {SLOW}: {verdict(times.median, GOAL)}."]),
    ]
    publish(f"s3-latency-{arguments.case}", page(__doc__, table, notes), save=arguments.save)
    return 0


if __name__ == "__main__":
    sys.exit(main())

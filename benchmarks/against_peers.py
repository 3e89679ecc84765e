"""Speed of the job compared with programs that a user writes by hand.

``python benchmarks/against_peers.py --case effnet-8h``

Time from the start of the process to its exit, on the same archive and with the same weights. Every round checks that
all programs give the same vectors (relative error up to 1e-4 in fp32), and the benchmark fails if they do not.
``peers/`` describes the programs. ``--small`` uses minutes of audio, which measures the start-up and not the speed.
"""

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from archive import Archive, add_cache_option
from harness import DRIVER, HELPERS, STORE, TOTAL, WORKERS, Command, Measurement, measure, run_rounds
from job import WINDOW_S, Workspace, last_run
from tables import Spread, add_options, markdown, page, publish, ratios, verdict
from vectors import checked_error, relative_error
from weights import BEATS, EFFICIENTNET, make_checkpoint

OURS = {"this job, fp32": "fp32", "this job, bf16": "bf16"}
CHECKED = "this job, fp32"
REFERENCE, DATALOADER, TUNED = "reference loop", "DataLoader loop", "Ray documentation's way, tuned"
PEERS = {REFERENCE: "reference_loop.py", DATALOADER: "dataloader_loop.py", TUNED: "ray_documentation.py"}
# The options that the guides of Ray suggest on a machine of two CPUs, without the findings in the peer's docstring.
DOCUMENTATION = "Ray documentation's way"
AS_DOCUMENTED = ("--actors", "1", "--batch-size", "64", "--actor-cpus", "1")
OPENSOUNDSCAPE = "opensoundscape, its own vectors"


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
        model: Model of all programs.
        archive: Archive of all programs.
        small: Archive with ``--small``.
        goals: A variant of the job, a peer, and how many times as fast as the peer the job should be.
        only: Names of the programs that run; all if empty.
    """

    model: str
    archive: Archive
    small: Archive
    goals: tuple[tuple[str, str, float], ...]
    only: tuple[str, ...] = ()


CASES = {
    "effnet-8h": Case(
        EFFICIENTNET,
        Archive.of_hours(8),
        Archive.of_hours(0.1),
        (
            ("this job, fp32", REFERENCE, 1.8),
            ("this job, bf16", REFERENCE, 2.6),
            ("this job, fp32", DATALOADER, 2.0),
        ),
    ),
    "ray-8h": Case(
        EFFICIENTNET,
        Archive.of_hours(8),
        Archive.of_hours(0.1),
        (("this job, fp32", DOCUMENTATION, 4.0),),
        ("this job, fp32", DOCUMENTATION, TUNED),
    ),
    "beats-1h": Case(
        BEATS,
        Archive.of_hours(1),
        Archive.of_hours(1 / 60),
        (("this job, fp32", REFERENCE, 1.0), ("this job, bf16", REFERENCE, 2.5)),
    ),
    "clips": Case(
        EFFICIENTNET,
        Archive("wav", 48_000, 10_000, 3.0),
        Archive("wav", 48_000, 100, 3.0),
        (("this job, fp32", REFERENCE, 1.8),),
    ),
}


def commands_of(case: Case, folder: Path, workspace: Workspace, arguments: argparse.Namespace) -> list[Command]:
    jobs = [
        workspace.embed_command(name, folder, case.model, "--precision", precision) for name, precision in OURS.items()
    ]
    peers = [peer_command(name, script, folder, case, workspace) for name, script in PEERS.items()]
    documented = peer_command(DOCUMENTATION, "ray_documentation.py", folder, case, workspace)
    peers.append(replace(documented, argv=[*documented.argv, *AS_DOCUMENTED]))
    if arguments.bf16_peers:
        peers += [
            peer_command(f"{name}, bf16", script, folder, case, workspace, "bf16") for name, script in PEERS.items()
        ]
    if arguments.opensoundscape and case.model == EFFICIENTNET:
        command = peer_command(OPENSOUNDSCAPE, "opensoundscape_cnn.py", folder, case, workspace)
        peers.append(replace(command, argv=[arguments.opensoundscape, *command.argv[1:]]))
    if arguments.batch_size:
        more = ["--batch-size", str(arguments.batch_size)]
        peers = [p if REFERENCE in p.name else replace(p, argv=[*p.argv, *more]) for p in peers]
    only = arguments.only or case.only or {command.name for command in [*jobs, *peers]} - {DOCUMENTATION}
    chosen = [command for command in [*jobs, *peers] if command.name in only]
    if CHECKED not in [command.name for command in chosen]:
        raise SystemExit(
            f"--only: {CHECKED!r} must be among the programs, because all vectors are compared with its vectors"
        )
    return chosen


def peer_command(  # noqa: PLR0917
    name: str, script: str, folder: Path, case: Case, workspace: Workspace, precision: str = "fp32"
) -> Command:
    output = workspace.outputs / f"{Path(script).stem}-{precision}.parquet"
    argv = [
        *(sys.executable, f"benchmarks/peers/{script}", "--input", str(folder), "--output", str(output)),
        *("--model", case.model, "--checkpoint", str(make_checkpoint(case.model, workspace.cache))),
        *("--window-s", str(WINDOW_S), "--precision", precision),
    ]
    return Command(name, argv, output, workspace.environment())


class Errors:
    """Largest error of each program's vectors against the job in fp32, over all rounds."""

    def __init__(self, commands: list[Command]) -> None:
        self._outputs = {command.name: command.output for command in commands}
        self.largest: dict[str, float] = {}

    def measure_and_check(self, command: Command) -> Measurement:
        measured = measure(command)
        reference = self._outputs[CHECKED]
        assert command.output is not None
        assert reference is not None
        if command.name in OURS:
            last_run(command.output)
        if command.name == OPENSOUNDSCAPE or not reference.exists():
            return measured
        error = relative_error if command.name.endswith("bf16") else checked_error
        self.largest[command.name] = max(self.largest.get(command.name, 0), error(command.output, reference))
        return measured


def rows(results: dict[str, list[Measurement]], audio_s: float, errors: Errors) -> list[list[str]]:
    wall = {name: [run.wall_s for run in runs] for name, runs in results.items()}
    table_rows = []
    for name, runs in results.items():
        times = [audio_s / seconds for seconds in wall[name]]
        speedup = ratios(wall[REFERENCE], wall[name]).text(".2f") if REFERENCE in wall else "–"
        peaks = [max(run.peak_mb.get(role, 0) for run in runs) for role in (DRIVER, WORKERS, HELPERS, STORE, TOTAL)]
        cpu = Spread.of([run.cpu_s for run in runs])
        error = errors.largest.get(name)
        table_rows.append(
            [
                *(name, Spread.of(wall[name]).text(), Spread.of(times).text(".0f"), speedup, format(cpu.median, ".0f")),
                *(f"{peak:,.0f}" for peak in peaks),
                "–" if error is None else f"{error:.0e}" if error else "0",
            ]
        )
    return table_rows


def verdicts(case: Case, results: dict[str, list[Measurement]]) -> list[str]:
    lines = []
    for job, peer, goal in case.goals:
        if job in results and peer in results:
            times = ratios([run.wall_s for run in results[peer]], [run.wall_s for run in results[job]])
            lines.append(f"{job}, over the {peer}: {verdict(times.median, goal)}.")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=CASES, default="effnet-8h")
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help=f"programs to run: {', '.join([*OURS, *PEERS, DOCUMENTATION])}"
    )
    parser.add_argument("--bf16-peers", action="store_true", help="also run the peers in bf16")
    parser.add_argument(
        "--opensoundscape", metavar="PYTHON", help="Python of an environment with opensoundscape: see peers/"
    )
    parser.add_argument(
        "--batch-size", type=int, metavar="N", help="batch size of the peers, instead of their best one"
    )
    add_options(parser, rounds=3)
    add_cache_option(parser)
    arguments = parser.parse_args()
    case = CASES[arguments.case]
    workspace = Workspace.of(arguments, "peers")
    archive = case.small if arguments.small else case.archive
    commands = commands_of(case, workspace.recordings(archive), workspace, arguments)
    errors = Errors(commands)
    tasks = {command.name: lambda command=command: errors.measure_and_check(command) for command in commands}
    results = run_rounds(tasks, 1 if arguments.small else arguments.rounds)
    table = markdown(
        [
            *("", "wall s", "× real time", "times as fast as the reference loop", "CPU s"),
            *(f"peak MB: {role}" for role in (DRIVER, WORKERS, HELPERS, STORE, TOTAL)),
            "error of vectors",
        ],
        rows(results, archive.audio_s, errors),
    )
    notes = [
        f"{archive}, {case.model}, windows of {WINDOW_S:g} s; medians of {len(results[CHECKED])} (min–max).",
        "The error is the largest relative error of a window against this job in fp32.",
        *([] if arguments.small else verdicts(case, results)),
    ]
    publish(f"peers-{arguments.case}", page(__doc__, table, notes), save=arguments.save)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""How much sooner is the job done than what one writes by hand? ``python benchmarks/against_peers.py --case effnet-8h``

From the process' start to its exit, on the same archive, with the same weights. That all give the same vectors (in
fp32, relative error up to 1e-4) is checked in every round, and the benchmark fails if they do not. ``peers/`` says how
each of them is written. ``--small`` is minutes of audio: of start-up it says something, of speed nothing.
"""

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from archive import Archive, add_cache_option
from harness import DRIVER, HELPERS, STORE, TOTAL, WORKERS, Command, Measured, measure, rounds
from job import WINDOW_S, Workplace, last_run
from tables import Spread, add_options, markdown, page, publish, question, ratios, verdict
from vectors import check, relative_error
from weights import BEATS, EFFICIENTNET, checkpoint

OURS = {"this job, fp32": "fp32", "this job, bf16": "bf16"}
CHECKED = "this job, fp32"
REFERENCE, DATALOADER, TUNED = "reference loop", "DataLoader loop", "Ray documentation's way, tuned"
PEERS = {REFERENCE: "reference_loop.py", DATALOADER: "dataloader_loop.py", TUNED: "ray_documentation.py"}
# The same before its user has found out what its docstring tells: what stands in the guides, on a machine of two CPUs.
DOCUMENTATION = "Ray documentation's way"
AS_DOCUMENTED = ("--actors", "1", "--batch-size", "64", "--actor-cpus", "1")
OPENSOUNDSCAPE = "opensoundscape, its own vectors"


@dataclass(frozen=True)
class Case:
    """``goals``: one of ours, a peer, and how many times as fast. ``only``: those that run, if not all."""

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


def contenders(case: Case, folder: Path, place: Workplace, arguments: argparse.Namespace) -> list[Command]:
    ours = [place.embed(name, folder, case.model, "--precision", precision) for name, precision in OURS.items()]
    peers = [peer(name, script, folder, case, place) for name, script in PEERS.items()]
    documented = peer(DOCUMENTATION, "ray_documentation.py", folder, case, place)
    peers.append(replace(documented, argv=[*documented.argv, *AS_DOCUMENTED]))
    if arguments.bf16_peers:
        peers += [peer(f"{name}, bf16", script, folder, case, place, "bf16") for name, script in PEERS.items()]
    if arguments.opensoundscape and case.model == EFFICIENTNET:
        command = peer(OPENSOUNDSCAPE, "opensoundscape_cnn.py", folder, case, place)
        peers.append(replace(command, argv=[arguments.opensoundscape, *command.argv[1:]]))
    if arguments.batch_size:
        more = ["--batch-size", str(arguments.batch_size)]
        peers = [each if REFERENCE in each.name else replace(each, argv=[*each.argv, *more]) for each in peers]
    only = arguments.only or case.only or {command.name for command in [*ours, *peers]} - {DOCUMENTATION}
    chosen = [command for command in [*ours, *peers] if command.name in only]
    if CHECKED not in [command.name for command in chosen]:
        raise SystemExit(f"--only: {CHECKED!r} must be among them: the others' vectors are compared with its own")
    return chosen


def peer(  # noqa: PLR0917
    name: str, script: str, folder: Path, case: Case, place: Workplace, precision: str = "fp32"
) -> Command:
    output = place.outputs / f"{Path(script).stem}-{precision}.parquet"
    argv = [
        *(sys.executable, f"benchmarks/peers/{script}", "--input", str(folder), "--output", str(output)),
        *("--model", case.model, "--checkpoint", str(checkpoint(case.model, place.cache))),
        *("--window-s", str(WINDOW_S), "--precision", precision),
    ]
    return Command(name, argv, output, place.environment())


class Errors:
    """Return the largest difference between the vectors of each contender and ours, over all rounds."""

    def __init__(self, commands: list[Command]) -> None:
        self._outputs = {command.name: command.output for command in commands}
        self.largest: dict[str, float] = {}

    def measure_and_check(self, command: Command) -> Measured:
        measured = measure(command)
        reference = self._outputs[CHECKED]
        assert command.output is not None
        assert reference is not None
        if command.name in OURS:
            last_run(command.output)
        if command.name == OPENSOUNDSCAPE or not reference.exists():
            return measured
        error = relative_error if command.name.endswith("bf16") else check
        self.largest[command.name] = max(self.largest.get(command.name, 0), error(command.output, reference))
        return measured


def rows(results: dict[str, list[Measured]], audio_s: float, errors: Errors) -> list[list[str]]:
    wall = {name: [run.wall_s for run in runs] for name, runs in results.items()}
    found = []
    for name, runs in results.items():
        times = [audio_s / seconds for seconds in wall[name]]
        sooner = ratios(wall[REFERENCE], wall[name]).text(".2f") if REFERENCE in wall else "–"
        peaks = [max(run.peak_mb.get(role, 0) for run in runs) for role in (DRIVER, WORKERS, HELPERS, STORE, TOTAL)]
        cpu = Spread.of([run.cpu_s for run in runs])
        error = errors.largest.get(name)
        found.append(
            [
                *(name, Spread.of(wall[name]).text(), Spread.of(times).text(".0f"), sooner, format(cpu.median, ".0f")),
                *(f"{peak:,.0f}" for peak in peaks),
                "–" if error is None else f"{error:.0e}" if error else "0",
            ]
        )
    return found


def verdicts(case: Case, results: dict[str, list[Measured]]) -> list[str]:
    said = []
    for ours, other, goal in case.goals:
        if ours in results and other in results:
            times = ratios([run.wall_s for run in results[other]], [run.wall_s for run in results[ours]])
            said.append(f"{ours}, over the {other}: {verdict(times.median, goal)}.")
    return said


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=CASES, default="effnet-8h")
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help=f"some of: {', '.join([*OURS, *PEERS, DOCUMENTATION])}"
    )
    parser.add_argument("--bf16-peers", action="store_true", help="the peers in bf16, too")
    parser.add_argument("--opensoundscape", metavar="PYTHON", help="of an environment that has it: see peers/")
    parser.add_argument("--batch-size", type=int, metavar="N", help="of the peers that have one, instead of their best")
    add_options(parser, rounds=3)
    add_cache_option(parser)
    arguments = parser.parse_args()
    case = CASES[arguments.case]
    place = Workplace.of(arguments, "peers")
    archive = case.small if arguments.small else case.archive
    commands = contenders(case, place.recordings(archive), place, arguments)
    errors = Errors(commands)
    tasks = {command.name: lambda command=command: errors.measure_and_check(command) for command in commands}
    results = rounds(tasks, 1 if arguments.small else arguments.rounds)
    table = markdown(
        [
            *("", "wall s", "× real time", "times as fast as the reference loop", "CPU s"),
            *(f"peak MB: {role}" for role in (DRIVER, WORKERS, HELPERS, STORE, TOTAL)),
            "error of vectors",
        ],
        rows(results, archive.audio_s, errors),
    )
    notes = [
        f"{archive}, {case.model}, windows of {WINDOW_S:g} s; medians of {len(results[CHECKED])} (least–most).",
        "The error is the largest relative one of a window, against this job in fp32.",
        *([] if arguments.small else verdicts(case, results)),
    ]
    publish(f"peers-{arguments.case}", page(question(__doc__), table, notes), save=arguments.save)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What an output holds, from its shards alone: ``python -m jobs.report OUTPUT``.

Exit codes: 0 everything is there and agrees; 1 it does not; 2 there is no such output.
"""

import json
import sys
from collections.abc import Sequence

from embedding.command_line import Parser
from embedding.console import People, audio_length, complain, duration, plural
from embedding.errors import RequestError

EXIT_AGREES, EXIT_DISAGREES, EXIT_BAD_REQUEST = 0, 1, 2


def make_parser() -> Parser:
    parser = Parser(
        prog="python -m jobs.report",
        description="Count what an output holds, from its shards alone, and say where its report.json disagrees.",
        allow_abbrev=False,
    )
    parser.add_argument("output", metavar="OUTPUT", help="directory or s3:// prefix that jobs.embed wrote")
    parser.add_argument("--json", action="store_true", help="print the counts as JSON")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Count and compare; the exit code says how it went."""
    try:
        given = make_parser().parse_args(arguments)
        from embedding import storage  # numpy and pyarrow: not for --help
        from embedding.output.audit import audit

        found = audit(storage.normalise(given.output, "OUTPUT"))
    except RequestError as error:
        complain(error)
        return EXIT_BAD_REQUEST
    people = People.on_stdout()
    if given.json:
        people.say(json.dumps(found.as_json(), indent=2, ensure_ascii=False))
        return EXIT_DISAGREES if found.disagreements else EXIT_AGREES
    output = found.output
    kinds = ", ".join(f"{kind} {failure['recordings']:,}" for kind, failure in found.failures.items())
    people.say(
        f"{plural(int(output['recordings']), 'recording')} embedded, "
        f"{output['failed']:,} failed{f' ({kinds})' if kinds else ''} · "
        f"{plural(int(output['windows']), 'window')} in {plural(int(output['shards']), 'shard')} · "
        f"{audio_length(output['audio_s'])} of audio"
    )
    for run in found.runs:
        speed = f" · {run['times_real_time']:,} × real time" if run["times_real_time"] else ""
        people.say(
            f"  run of {run['started']} on {run['host']}: {run['state']} after {duration(run['wall_s'])}, "
            f"{plural(run['windows_written'], 'window')}{speed}"
        )
    if found.writer is not None:
        people.say(f"a run is writing just now ({found.writer})")
    for disagreement in found.disagreements:
        people.warn(disagreement)
    if not found.disagreements:
        people.say("report.json agrees" if found.writer is None else "nothing disagrees so far")
    return EXIT_DISAGREES if found.disagreements else EXIT_AGREES


if __name__ == "__main__":
    sys.exit(main())

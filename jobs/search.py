"""The stored windows nearest to a clip, or to one of themselves: ``python -m jobs.search OUTPUT --clip call.wav``.

Exit codes: 0 they were found; 1 not all could be shown; 2 the request makes no sense.
"""

import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from embedding.cli.arguments import Parser, number, output_parser
from embedding.cli.exit_codes import run_job
from embedding.cli.terminal import Terminal
from embedding.errors import RequestError, RunError
from embedding.stopping import end_process
from embedding.text import clock, terminal_json

# Hits; each is held in memory by every task.
MOST = 1_000_000


def make_parser() -> Parser:
    """Return the parser of the command line."""
    parser = output_parser(
        "search",
        "Find the windows of an output that are nearest, by cosine, to a clip or to one of themselves. "
        "Every window is looked at: the answer is exact.",
    )
    parser.add_argument("--clip", metavar="FILE", help="search for the sound of this file, encoded as the output was")
    parser.add_argument("--like", metavar="FILE", help="search for a stored window of this recording (with --at)")
    parser.add_argument("--at", metavar="SECONDS", default="0", help="where in that recording (default: 0)")
    parser.add_argument("--k", metavar="N", default="10", help="how many (default: 10)")
    parser.add_argument("--json", action="store_true", help="print them as JSON, one a line")
    parser.add_argument("--save-clips", metavar="DIR", help="cut them out, into WAV files in this folder")
    return parser


def search(arguments: Sequence[str] | None) -> None:
    """Search, and show what was found.

    Raises:
        RequestError: the request makes no sense.
        RunError: some clips could not be cut out.
    """
    given = make_parser().parse_args(arguments)
    if (given.clip is None) == (given.like is None):
        raise RequestError("search for either --clip FILE or --like FILE --at SECONDS")
    k, at_s = number("--k", given.k, int, 1, MOST), number("--at", given.at, float, 0, math.inf)
    folder = None if given.save_clips is None else _folder(given.save_clips)
    from embedding import storage  # numpy and pyarrow: not for --help
    from embedding.search.search import Search
    from embedding.search.search import search as run

    terminal = Terminal.on_stdout()
    clip = None if given.clip is None else storage.normalise(given.clip, "--clip")
    like = None if given.like is None else storage.normalise(given.like, "--like")
    root = storage.normalise(given.output, "OUTPUT")
    hits = run(Search(root, clip, like, at_s, int(k), given.layer), verbose=given.verbose).to_pylist()
    if not hits and not given.json:
        terminal.say("no other window is stored")
    for rank, hit in enumerate(hits, 1):
        if given.json:
            sys.stdout.write(terminal_json(hit) + "\n")  # not redacted: for programs
        else:
            times = f"{clock(hit['start_time'])}–{clock(hit['end_time'])}"
            terminal.say(f"{rank:4}  {hit['score']:.4f}  {times}  {hit['file']}")
    if folder is not None:
        n = _save(hits, folder)
        if not given.json:
            terminal.say(f"{n} clips in {folder}")


def _folder(given: str) -> Path:
    from embedding import storage

    name = storage.normalise(given, "--save-clips")
    if storage.is_s3(name):
        raise RequestError(f"--save-clips: {name} is no folder on this machine: write them there, then copy them")
    try:
        Path(name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"--save-clips: cannot make {name}: {error.strerror}") from error
    if not os.access(name, os.W_OK, effective_ids=True):
        raise RequestError(f"--save-clips: cannot write into {name}")
    return Path(name)


def _save(hits: list[dict[str, Any]], folder: Path) -> int:
    from embedding.search.hit_clips import save

    failed = []
    for rank, hit in enumerate(hits, 1):
        try:
            save(hit, rank, folder)
        except (OSError, RuntimeError) as error:  # libsndfile's are RuntimeErrors
            failed.append(f"{hit['file']}: {error}")
    if failed:
        raise RunError(f"{len(failed)} of {len(hits)} clips could not be cut out: {failed[0]}")
    return len(hits)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job; the exit code says how it went."""
    return run_job(lambda: search(arguments), output="OUTPUT")


if __name__ == "__main__":
    end_process(main())

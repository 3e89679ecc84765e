"""Find the stored windows nearest to a sound: ``python -m jobs.search OUTPUT --clip call.wav``.

Exit codes: 0 the hits are printed; 1 some clips could not be saved, or the search failed; 2 the request makes no sense.
"""

import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from embedding.cli.arguments import Parser, add_where, number, output_parser
from embedding.cli.exit_codes import run_job
from embedding.cli.terminal import Terminal
from embedding.errors import RequestError, RunError
from embedding.stopping import end_process
from embedding.text import clock, terminal_json

# Each task holds as many hits in memory.
MAX_HITS = 1_000_000


def make_parser() -> Parser:
    """Return the parser of the command line."""
    parser = output_parser(
        "search",
        "Find the windows of an output that are nearest, by cosine, to a clip or to another stored window. "
        "Every window is compared: the answer is exact.",
    )
    parser.add_argument("--clip", metavar="FILE", help="search for the sound of this file, encoded as the output was")
    parser.add_argument("--like", metavar="FILE", help="search for a stored window of this recording (with --at)")
    parser.add_argument(
        "--at", metavar="SECONDS", default="0", help="the window of --like at this time is the query (default: 0)"
    )
    parser.add_argument("--k", metavar="N", default="10", help="number of hits (default: 10)")
    parser.add_argument("--json", action="store_true", help="print the hits as JSON, one per line")
    parser.add_argument("--save-clips", metavar="DIR", help="save the sound of each hit as a WAV file in this folder")
    add_where(parser)
    return parser


def search(arguments: Sequence[str] | None) -> None:
    """Search an output, and print the hits.

    Raises:
        RequestError: The request makes no sense.
        RunError: Some clips could not be saved, or the storage or the cluster failed.
    """
    options = make_parser().parse_args(arguments)
    if (options.clip is None) == (options.like is None):
        raise RequestError("search for either --clip FILE or --like FILE --at SECONDS")
    k, at_s = number("--k", options.k, int, 1, MAX_HITS), number("--at", options.at, float, 0, math.inf)
    folder = None if options.save_clips is None else _make_folder(options.save_clips)
    from embedding import storage  # here, because --help needs no numpy and pyarrow
    from embedding.search.search import SearchOptions
    from embedding.search.search import search as search_output

    terminal = Terminal.on_stdout()
    clip = None if options.clip is None else storage.normalise(options.clip, "--clip")
    like = None if options.like is None else storage.normalise(options.like, "--like")
    root = storage.normalise(options.output, "OUTPUT")
    query = SearchOptions(root, clip, like, at_s, int(k), options.layer, options.where)
    hits = search_output(query, verbose=options.verbose).to_pylist()
    if not hits and not options.json:
        terminal.say("no other window is stored")
    for rank, hit in enumerate(hits, 1):
        if options.json:
            sys.stdout.write(terminal_json(hit) + "\n")  # not redacted: for programs
        else:
            times = f"{clock(hit['start_time'])}–{clock(hit['end_time'])}"
            terminal.say(f"{rank:4}  {hit['score']:.4f}  {times}  {hit['file']}")
    if folder is not None:
        _save_clips(hits, folder)
        if not options.json:
            terminal.say(f"{len(hits)} clips in {folder}")


def _make_folder(uri: str) -> Path:
    """Make the folder of the clips.

    Raises:
        RequestError: The folder is not on this machine, or cannot be written to.
    """
    from embedding import storage

    name = storage.normalise(uri, "--save-clips")
    if storage.is_s3(name):
        raise RequestError(f"--save-clips: {name} is no folder on this machine: save to a local folder, then copy it")
    try:
        Path(name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"--save-clips: cannot make {name}: {error.strerror}") from error
    if not os.access(name, os.W_OK, effective_ids=True):
        raise RequestError(f"--save-clips: cannot write into {name}")
    return Path(name)


def _save_clips(hits: list[dict[str, Any]], folder: Path) -> None:
    """Save the clips of all hits that can be saved.

    Raises:
        RunError: A clip could not be saved.
    """
    from embedding.search.hit_clips import save_clip

    failures = []
    for rank, hit in enumerate(hits, 1):
        try:
            save_clip(hit, rank, folder)
        except (OSError, RuntimeError) as error:  # errors of libsndfile are RuntimeErrors
            failures.append(f"{hit['file']}: {error}")
    if failures:
        raise RunError(f"{len(failures)} of {len(hits)} clips could not be cut out: {failures[0]}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code."""
    return run_job(lambda: search(arguments), output="OUTPUT")


if __name__ == "__main__":
    end_process(main())

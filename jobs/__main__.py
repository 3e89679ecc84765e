"""All jobs as one command: ``avex-batch embed …`` is ``python -m jobs.embed …``."""

import sys
from importlib import import_module

from embedding.cli.exit_codes import EXIT_BAD_REQUEST, EXIT_COMPLETE
from embedding.cli.terminal import Terminal
from embedding.config import did_you_mean
from embedding.errors import RequestError, print_error
from embedding.stopping import end_process

JOBS = {
    "embed": "embed recordings: one vector per window, to Parquet",
    "pool": "pool windows to one row per recording",
    "search": "find the windows nearest to a sound",
    "probe": "learn a linear probe from labels, and measure it",
    "evaluate": "compare outputs and layers on labels",
    "detect": "find a probe's labels in every window: when, where, how sure",
    "cluster": "find groups of alike windows",
    "report": "show what an output holds, in words or as a page",
    "export": "export vectors to the formats of other tools",
}


def main() -> int:
    """Run the job that the first argument names; return its exit code."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        terminal = Terminal.on_stdout()
        terminal.say("usage: avex-batch JOB [options]; avex-batch JOB --help shows the options of a job")
        for job, text in JOBS.items():
            terminal.say(f"  {job:10}{text}")
        return EXIT_COMPLETE
    if name not in JOBS:
        print_error(RequestError(f"there is no job {name!r}{did_you_mean(name, JOBS)}; there are {', '.join(JOBS)}"))
        return EXIT_BAD_REQUEST
    return import_module(f"jobs.{name}").main(arguments)


def run() -> None:
    """Run the job, and end the process with its exit code."""
    end_process(main())


if __name__ == "__main__":
    run()

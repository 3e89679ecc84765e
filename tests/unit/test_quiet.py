"""Libraries that write to stderr or log: hidden, except for errors and after bugs."""

import io
import logging
import subprocess
import sys

import pytest

from embedding.quiet import logging_hidden, native_output_hidden
from tests.support.commands import ROOT

# pytest's own stderr is not descriptor 2, so these programs have a process of their own.
PROGRAM = """
import os, sys
from embedding.errors import RunError
from embedding.quiet import native_output_hidden
try:
    with native_output_hidden():
        os.write(2, b"native\\n")
        print("ours", file=sys.stderr)
        {statement}
except (RunError, ZeroDivisionError):
    pass
os.write(2, b"afterwards\\n")
"""


@pytest.mark.parametrize(
    ("statement", "shown"),
    [
        ("pass", "ours\nafterwards\n"),
        ("raise RunError('stop')", "ours\nafterwards\n"),
        ("raise ZeroDivisionError", "ours\nnative\nafterwards\n"),
    ],
)
def test_native_output_is_hidden_except_after_a_bug(statement: str, shown: str) -> None:
    program = PROGRAM.format(statement=statement)
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == shown


def test_a_stderr_that_is_no_file_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    text = io.StringIO()
    monkeypatch.setattr(sys, "stderr", text)
    with native_output_hidden():
        print("shown", file=sys.stderr)  # noqa: T201
    assert text.getvalue() == "shown\n"


def test_warnings_of_a_logger_are_hidden_and_its_errors_shown(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("some.library")
    with logging_hidden("some.library"):
        logger.warning("already registered")
        logger.error("broken")
    logger.warning("afterwards")
    assert [record.message for record in caplog.records] == ["broken", "afterwards"]

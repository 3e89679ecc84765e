"""Libraries that write to stderr or log: hidden, except for errors and after bugs."""

import io
import logging
import subprocess
import sys
from pathlib import Path

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


LOGGING = """
import logging, os
from embedding.quiet import native_output_hidden
logging.basicConfig(format="%(message)s")
with native_output_hidden():
    os.write(2, b"native\\n")
    logging.warning("during")
logging.warning("afterwards")
"""


def test_log_messages_of_the_user_stay_visible() -> None:
    done = subprocess.run([sys.executable, "-c", LOGGING], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == "during\nafterwards\n"


NOTEBOOK = """
import os, sys
from embedding.quiet import native_output_hidden
os.dup2(os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY), 7)
sys.stderr = open(7, "w", buffering=1)
with native_output_hidden():
    os.write(2, b"native\\n")
    print("ours", file=sys.stderr)
os.write(2, b"afterwards\\n")
"""


def test_native_output_is_hidden_in_notebooks_whose_stderr_is_another_file(tmp_path: Path) -> None:
    program = [sys.executable, "-c", NOTEBOOK, str(tmp_path / "cell")]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == "afterwards\n"
    assert (tmp_path / "cell").read_text() == "ours\n"


def test_a_closed_stderr_is_left_alone() -> None:
    program = "import os; from embedding.quiet import native_output_hidden\nos.close(2)\n"
    program += "with native_output_hidden(): print('done')"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout == "done\n"


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

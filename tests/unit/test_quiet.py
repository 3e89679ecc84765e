"""Libraries that write to stderr or log: hidden, except for errors and after bugs."""

import io
import logging
import os
import sys

import pytest

from embedding.errors import RunError
from embedding.quiet import logging_hidden, native_output_hidden


def test_native_output_is_hidden_and_python_s_is_not(capfd: pytest.CaptureFixture[str]) -> None:
    with native_output_hidden():
        os.write(2, b"[mpg123.c:1] warning: a frame\n")
        print("ours", file=sys.stderr)  # noqa: T201
    os.write(2, b"afterwards\n")
    assert capfd.readouterr().err == "ours\nafterwards\n"


@pytest.mark.parametrize(("error", "shown"), [(RunError("stop"), ""), (ZeroDivisionError(), "native\n")])
def test_native_output_is_shown_after_a_bug_alone(
    error: Exception, shown: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(type(error)), native_output_hidden():
        os.write(2, b"native\n")
        raise error
    assert capfd.readouterr().err == shown


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

"""Exit codes of jobs.embed for each end of a run."""

from dataclasses import replace

import pytest

import embedding.driver
from embedding.errors import RequestError, RunError
from jobs.embed import main
from tests.support.balances import BALANCE

SMALL = replace(BALANCE, listed=8, already_done=0, embedded=8, failed=0)


@pytest.mark.parametrize(
    ("ending", "code", "error"),
    [
        (BALANCE, 0, ""),
        (None, 0, ""),
        (
            replace(BALANCE, failed=100, embedded=794),
            1,
            "1,104 of 1,204 recordings are embedded and saved; 100 failed: ",
        ),
        (
            replace(BALANCE, embedded=880),
            1,
            "not every recording is accounted for: of 1,204 recordings 1,190 are embedded and 2 failed",
        ),
        (replace(BALANCE, failed=60, embedded=834), 0, ""),
        (replace(BALANCE, failed=61, embedded=833), 1, "is more than --max-failure-rate 0.05 allows"),
        (replace(SMALL, embedded=7, failed=1), 0, ""),
        (
            replace(SMALL, embedded=6, failed=2, failed_examples=("a.wav (empty)", "b.wav (corrupt)")),
            1,
            "6 of 8 recordings are embedded and saved; 2 failed: a.wav (empty), b.wav (corrupt); this is more than",
        ),
        (replace(SMALL, listed=1, embedded=0, failed=1), 1, "0 of 1 recordings are embedded and saved; 1 failed"),
        (replace(BALANCE, windows_stored=5000), 1, "not every recording is accounted for"),
        (RequestError("--limit: no"), 2, "avex-batch: --limit: no"),
        (RunError("the storage failed"), 1, "avex-batch: the storage failed"),
        (KeyboardInterrupt(), 1, "avex-batch: stopped; what is stored stays valid"),
    ],
)
def test_each_end_of_a_run_has_its_exit_code_and_message(
    ending: object, code: int, error: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def embed(*_: object) -> object:
        if isinstance(ending, BaseException):
            raise ending
        return ending and [ending]

    monkeypatch.setattr(embedding.driver, "embed", embed)
    assert main(["--input", "a", "--output", "b"]) == code
    printed = capsys.readouterr()
    assert error in printed.err
    assert printed.err.count("\n") == (1 if error else 0)


def test_a_failure_rate_on_the_command_line_applies_to_small_runs_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(embedding.driver, "embed", lambda *_: [replace(SMALL, embedded=7, failed=1)])
    assert main(["--input", "a", "--output", "b", "--max-failure-rate", "0"]) == 1
    assert "more than --max-failure-rate 0 allows" in capsys.readouterr().err
    assert main(["--input", "a", "--output", "b", "--max-failure-rate", "0.125"]) == 0

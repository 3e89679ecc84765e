"""Exit codes of the job, from how its run ended."""

from dataclasses import replace

import pytest

import embedding.driver
from embedding.errors import RequestError, RunError
from jobs.embed import main
from tests.unit.output.test_counters import BALANCE


@pytest.mark.parametrize(
    ("ending", "code", "said"),
    [
        (BALANCE, 0, ""),
        (None, 0, ""),
        (replace(BALANCE, failed=100, embedded=794), 1, "100 of 1,204 recordings failed, more than --max-failure-rate"),
        (
            replace(BALANCE, embedded=880),
            1,
            "not every recording is accounted for: of 1,204 recordings 1,190 are embedded and 2 failed",
        ),
        (replace(BALANCE, windows_stored=5000), 1, "not every recording is accounted for"),
        (RequestError("--limit: no"), 2, "avex-batch: --limit: no"),
        (RunError("the storage failed"), 1, "avex-batch: the storage failed"),
        (KeyboardInterrupt(), 1, "avex-batch: stopped; what is stored stays valid"),
    ],
)
def test_the_exit_code_says_how_it_went(
    ending: object, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def embed(*_: object) -> object:
        if isinstance(ending, BaseException):
            raise ending
        return ending and [ending]

    monkeypatch.setattr(embedding.driver, "embed", embed)
    assert main(["--input", "a", "--output", "b"]) == code
    printed = capsys.readouterr()
    assert said in printed.err
    assert printed.err.count("\n") == (1 if said else 0)

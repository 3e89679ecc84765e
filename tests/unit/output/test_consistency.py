"""Messages of ``jobs.report`` about outputs that differ from what a run leaves."""

import json
from pathlib import Path

import numpy as np
import pytest

from jobs.report import main
from tests.support.shards import write_output


@pytest.fixture
def output(unprivileged: Path) -> Path:
    write_output(str(unprivileged / "output"), {"/a/1.wav": np.ones((2, 4), np.float32)}, {"model": "a model"}, 1)
    return unprivileged / "output"


def test_an_output_without_write_access_is_counted(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output.chmod(0o555)
    try:
        code = main([str(output)])
    finally:
        output.chmod(0o755)
    printed = capsys.readouterr()
    assert (code, printed.err) == (1, "")
    assert printed.out.startswith("1 recording embedded, 0 failed · 2 windows in 1 shard")
    assert "report.json cannot be written: Permission denied" in printed.out
    assert not (output / "report.json").exists()


def test_a_run_json_with_other_settings_is_reported(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (output / "run.json").write_text(json.dumps({"settings": {}}))
    assert main([str(output)]) == 1
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "1 shard was written with other settings than run.json says, for example s0.parquet" in printed.out

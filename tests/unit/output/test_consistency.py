"""What ``jobs.report`` says of outputs that are not as a run leaves them."""

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


def test_an_output_that_cannot_be_written_to_is_counted_all_the_same(
    output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output.chmod(0o555)
    try:
        code = main([str(output)])
    finally:
        output.chmod(0o755)
    said = capsys.readouterr()
    assert (code, said.err) == (1, "")
    assert said.out.startswith("1 recording embedded, 0 failed · 2 windows in 1 shard")
    assert "report.json cannot be written: Permission denied" in said.out
    assert not (output / "report.json").exists()


def test_a_run_json_with_other_settings_disagrees(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (output / "run.json").write_text(json.dumps({"settings": {}}))
    assert main([str(output)]) == 1
    said = capsys.readouterr()
    assert said.err == ""
    assert "1 shard was written with other settings than run.json says, s0.parquet for one" in said.out

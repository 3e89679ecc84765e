"""Options: the same definition and the same checks for the command line, YAML files and code."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from embedding.config import EmbedConfig, make_config, option_name
from embedding.errors import RequestError
from jobs.embed import main, make_parser, parse

REQUIRED = ["--input", "a", "--output", "b"]


def test_default_values() -> None:
    config = parse(REQUIRED)
    assert config == EmbedConfig(input=("a",), output="b")
    assert (config.model, config.tail, config.pooling, config.precision) == (
        ("esp_aves2_sl_beats_all",),
        "pad",
        "mean",
        "fp32",
    )
    assert config.max_failure_rate is None


def test_every_option_is_explained_in_the_help() -> None:
    text = " ".join(make_parser().format_help().split())
    for field in dataclasses.fields(EmbedConfig):
        assert option_name(field.name) in text
        assert field.metadata["help"][:40] in text


def test_the_help_has_units_and_defaults() -> None:
    text = " ".join(make_parser().format_help().split())
    assert "--window-s SECONDS window length in seconds (default: the model's native length)" in text
    assert "(default: 0.05)" in text


def test_the_command_line_overrides_the_options_file(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("input: [x, y]\noutput: z\nwindow-s: 3\nbatch_size: 8\nmask_padding: true\n")
    config = parse(["--config", str(file), "--window-s", "5"])
    assert config.input == ("x", "y")
    assert (config.window_s, config.batch_size, config.mask_padding) == (5.0, 8, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "b"], "--input is required; see --help"),
        ([*REQUIRED, "--windows-s", "5"], "unknown option --windows-s (did you mean '--window-s'?)"),
        ([*REQUIRED, "--window-s", "long"], "--window-s: expected a number, got 'long'"),
        ([*REQUIRED, "--window-s", "0"], "--window-s: must be above 0, got 0"),
        ([*REQUIRED, "--window-s", "nan"], "--window-s: must be above 0, got nan"),
        ([*REQUIRED, "--hop-s", "-1"], "--hop-s: must be above 0, got -1"),
        ([*REQUIRED, "--batch-size", "2.5"], "--batch-size: expected a whole number or 'auto', got '2.5'"),
        ([*REQUIRED, "--batch-size", "0"], "--batch-size: must be at least 1 and at most 4096, got 0"),
        ([*REQUIRED, "--actors", "many"], "--actors: expected a whole number or 'auto', got 'many'"),
        ([*REQUIRED, "--max-failure-rate", "2"], "--max-failure-rate: must be at least 0 and at most 1, got 2"),
        (
            [*REQUIRED, "--pooling", "men"],
            "--pooling: 'men' is not one of mean, max, cls (did you mean 'mean'?)",
        ),
        ([*REQUIRED, "--config", "/nowhere.yaml"], "--config: cannot read /nowhere.yaml: No such file or directory"),
    ],
)
def test_an_invalid_option_is_one_line_with_its_name(arguments: list[str], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse(arguments)
    assert str(caught.value) == message


def test_an_unknown_option_in_the_options_file_gets_a_suggestion(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("input: x\noutput: z\nbatch-sise: 3\n")
    with pytest.raises(RequestError, match=r"unknown option --batch-sise \(did you mean '--batch-size'\?\)"):
        parse(["--config", str(file)])


def test_an_options_file_that_is_not_yaml_is_refused_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("input: [x\noutput: }")
    with pytest.raises(RequestError) as caught:
        parse(["--config", str(file)])
    assert "\n" not in str(caught.value)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"input: x\ninput: y", "has 'input' twice, in line 2"),
        (b"window-s: 1\nwindow_s: 2", "has 'window_s' twice, in line 2"),
        (b"model: &a [x]\ninput: *a", "has an alias (*name); write the value itself, in line 2"),
        (b"a: &a [x,x]\nb: &b [*a,*a]\nc: &c [*b,*b]", "has an alias (*name); write the value itself, in line 2"),
        (b"limit: !!int x", "has a tag (!name); write the value without it, in line 1"),
        (b"input: !!python/object:x {}", "has a tag (!name); write the value without it, in line 1"),
        (b"input: " + b"[" * 5000, "has lists in lists, more than 8 deep, in line 1"),
        (b"input: " + b"[" * 9 + b"]" * 9, "has lists in lists, more than 8 deep, in line 1"),
        (b"limit: " + b"9" * 5000, "has a number of more than 64 characters, in line 1"),
        (b"limit: 0x" + b"f" * 5000, "has a number of more than 64 characters, in line 1"),
        (b"limit: 0b_", "is not YAML: invalid literal for int()"),
        (b'input: "\\ud800"', "has half a character (a lone surrogate, \\uD800 to \\uDFFF), in line 1"),
        (b"input: \xff", "is not YAML: unacceptable character"),
        (b"#" * (2 << 20), "larger than 1,048,576 bytes"),
    ],
)
def test_a_harmful_options_file_is_refused_in_one_line(
    tmp_path: Path, content: bytes, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "job.yaml"
    file.write_bytes(content)
    assert main(["--config", str(file)]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("avex-batch: --config: ")
    assert str(file) in printed
    assert reason in printed
    assert printed.count("\n") == 1


def test_a_date_in_an_options_file_is_text(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("input: 2020-13-45\noutput: !!str 2020-01-01\n")
    config = parse(["--config", str(file)])
    assert (config.input, config.output) == (("2020-13-45",), "2020-01-01")


def test_values_from_code_are_checked() -> None:
    with pytest.raises(RequestError, match="--window-s: must be above 0"):
        make_config({"input": ["a"], "output": "b", "window_s": 0})


def test_an_invalid_request_ends_with_code_2_and_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*REQUIRED, "--tial", "pad"]) == 2
    captured = capsys.readouterr()
    assert captured.err == "avex-batch: unknown option --tial (did you mean '--tail'?)\n"
    assert captured.out == ""


def test_the_help_imports_neither_ray_nor_torch() -> None:
    code = (
        "import sys\n"
        "from jobs.embed import make_parser\n"
        "make_parser().format_help()\n"
        "assert not {'ray', 'torch', 'avex'} & set(sys.modules), sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

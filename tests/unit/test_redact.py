"""No credential reaches what is printed or stored, wherever it stood: options, environment, URLs, error messages."""

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import embedding.driver
from embedding import storage
from embedding.encoding.checkpoints import fetch_checkpoint
from embedding.errors import RequestError
from embedding.redact import SECRET_VARIABLES, URL_VARIABLES, redact, redact_all, redact_record
from jobs.embed import main
from local_ray import ray_of
from tests.support.audio import tone, write_audio
from tests.support.commands import Outcome, run_embed
from tests.support.models import EFFICIENTNET

KEY_ID = "AKIA" + "Q7ZRECOGNISEME77"
SECRET_KEY = "wJalrXUt/nFEMI+K7MDENG/bPxRfiRECOGNISEME"
SESSION = "FwoGZXIvYXdzERECOGNISEME//////////wEaDH+x=="
PASSWORD = "hunter2hunter2"
SIGNATURE = "5ca1ab1e" * 8
HUB_TOKEN = "hf_" + "RecogniseMeRecogniseMeRecogniseMe7"
SECRETS = (KEY_ID, SECRET_KEY, SESSION, PASSWORD, SIGNATURE, HUB_TOKEN)
SPELLINGS = {spelling for secret in SECRETS for spelling in (secret, quote(secret), quote(secret, safe=""))}
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": KEY_ID,
    "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
    "AWS_SESSION_TOKEN": SESSION,
    "HF_TOKEN": HUB_TOKEN,
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_MAX_ATTEMPTS": "1",
    "NO_PROXY": "127.0.0.1",
}
SIGNED = (
    f"X-Amz-Credential={KEY_ID}%2F20260101&X-Amz-Security-Token={quote(SESSION, safe='')}&X-Amz-Signature={SIGNATURE}"
)


@pytest.fixture
def no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment that holds none: what is then hidden is known by its shape."""
    for name in (*SECRET_VARIABLES, *URL_VARIABLES):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def secrets(no_secrets: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("no_secrets")
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"GET http://user:{PASSWORD}@127.0.0.1:9000/b failed", "GET http://***@127.0.0.1:9000/b failed"),
        (f"http://user:p@{PASSWORD}@host/x", "http://***@host/x"),
        (f"http://user:1/{PASSWORD}?#@host/x@y", "http://user:1/hunter2hunter2?#@host/x@y"),  # port 1, to any client
        (f"http://user:x/{PASSWORD}?#@host/x@y", "http://***@host/x@y"),
        (f"https://{PASSWORD}@host", "https://***@host"),
        (f"s3://{KEY_ID}:{SECRET_KEY}@bucket/a b", "s3://***@bucket/a b"),
        (f"/data/s3:/{KEY_ID}:{SECRET_KEY}@bucket", "/data/s3:/***@bucket"),
        (f"s3://b/w.pt?versionId=1&{SIGNED}: gone", "s3://b/w.pt?versionId=1&" + "&".join(
            f"X-Amz-{name}=***" for name in ("Credential", "Security-Token", "Signature")) + " gone"),
        ("https://h/w?AWSAccessKeyId=a&Expires=7&Signature=b", "https://h/w?AWSAccessKeyId=***&Expires=7&Signature=***"),
        ("?token=a&ACCESS_TOKEN=b&sig=c;api_key=d&x=1", "?token=***&ACCESS_TOKEN=***&sig=***;api_key=***&x=1"),
        ("?url=https%3A%2F%2Fh%3Fpassword%3Dp%26x%3D1", "?url=https%3A%2F%2Fh%3Fpassword%3D***%26x%3D1"),
        (f"key {KEY_ID}, ASIA{KEY_ID[4:]}", "key ***, ***"),
        (f"id%3D{KEY_ID} token={HUB_TOKEN}", "id%3D*** token=***"),
        (f"Bearer {PASSWORD}.x-y~z", "Bearer ***"),
        (f"authorization: Basic {PASSWORD}\nHost: h", "authorization: ***\nHost: h"),
        (f"{{'Authorization': 'AWS4 Signature={SIGNATURE}', 'Host': 'h'}}", "{'Authorization': '***', 'Host': 'h'}"),
        (f'{{\\"Authorization\\": \\"Digest {PASSWORD}\\", 1}}', '{\\"Authorization\\": \\"***", 1}'),
    ],
)  # fmt: skip
def test_a_credential_is_known_by_its_shape(text: str, expected: str) -> None:
    assert redact(text) == expected
    assert redact(expected) == expected


@pytest.mark.usefixtures("no_secrets")
@pytest.mark.parametrize(
    "text",
    [
        "a:b@c.wav",
        "site@home/2024:01.wav",
        "s3://bucket/x@y",
        "s3://bucket/a:b@c/d?e=f&g#h.wav",
        "s3://arn:aws:s3:us-east-1:123456789012:accesspoint:site/x@y.wav",
        "hf://owner/repo@revision/model.pt",
        "http://[::1]:9000/x@y",
        "http://127.0.0.1:9000/archive/a:b@c.wav",
        "hf_20250101T000000Z.wav",
        "AKIAPOLA/ASIA 2024/bearer.wav",
        "The authorization header is malformed",
        "done in 6 min 12 s: 892 embedded, 2 failed (corrupt 1, empty 1) · 5,360 windows in 21 shards",
    ],
)
def test_ordinary_names_stay_as_they_are(text: str) -> None:
    assert redact(text) == text


ORDINARY = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="=")).filter(
    lambda text: not re.search(r"(?i):/|hf_|akia|asia|bearer|authorization|%3d", text)
)


@pytest.mark.usefixtures("no_secrets")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ORDINARY, st.sampled_from(["", "/data/", "s3://bucket/", "http://127.0.0.1:9000/bucket/"]))
def test_text_without_a_credential_comes_out_equal(text: str, root: str) -> None:
    assert redact(root + text) == root + text


@pytest.mark.usefixtures("secrets")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(), st.sampled_from([SECRET_KEY, SESSION, quote(SECRET_KEY, safe=""), quote(SESSION)]), st.text())
def test_a_secret_of_the_environment_is_found_in_any_text(before: str, secret: str, after: str) -> None:
    assert secret not in redact(before + secret + after)


@pytest.mark.usefixtures("no_secrets")
@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "HTTPS_PROXY", "http_proxy"])
def test_the_login_of_an_endpoint_or_proxy_is_a_secret(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, f"http://user:{quote('p@ss/' + PASSWORD, safe='')}@host:3128")
    assert redact(f"tried p@ss/{PASSWORD} at host") == "tried *** at host"
    monkeypatch.setenv(name, "user:pw@host:3128")  # no URL, and the client's complaint quotes it
    assert redact("Invalid endpoint: user:pw@host:3128") == "Invalid endpoint: ***host:3128"


@pytest.mark.usefixtures("no_secrets")
def test_a_secret_as_short_as_a_word_does_not_blot_out_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    assert redact("a test of /tests/") == "a test of /tests/"


@pytest.mark.usefixtures("secrets")
def test_json_is_redacted_at_any_depth() -> None:
    made = redact_all({"a": [f"http://u:{PASSWORD}@h", 1, None], "b": {"c": (SECRET_KEY, True, 0.5)}})
    assert made == {"a": ["http://***@h", 1, None], "b": {"c": ["***", True, 0.5]}}


@pytest.mark.usefixtures("secrets")
def test_a_record_of_pythons_logging_is_redacted_with_its_traceback() -> None:
    try:
        raise ValueError(f"refused {SECRET_KEY}")
    except ValueError as error:
        record = logging.LogRecord(
            "any", logging.ERROR, "", 0, "at %s", (f"http://u:{PASSWORD}@h",), (ValueError, error, error.__traceback__)
        )
    assert redact_record(record)
    text = logging.Formatter().format(record)
    assert text.startswith("at http://***@h\nTraceback")
    assert text.endswith("ValueError: refused ***")


# --- options ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "uri", [f"s3://{KEY_ID}:{SECRET_KEY}@bucket/a", f"s3://{PASSWORD}@b", f"s3://arn:{PASSWORD}@b"]
)
@pytest.mark.parametrize("option", ["--input", "--output", "--checkpoint"])
def test_credentials_in_a_uri_are_refused_and_not_repeated(option: str, uri: str) -> None:
    with pytest.raises(RequestError) as caught:
        storage.normalise(uri, option)
    assert str(caught.value) == (
        f"{option}: a bucket name cannot contain ':' or '@'; credentials belong in the environment "
        "(AWS_PROFILE or AWS_ACCESS_KEY_ID/AWS_SECRET_ACCESS_KEY), not in a URI"
    )


def test_credentials_in_a_hub_uri_are_refused_and_not_repeated() -> None:
    with pytest.raises(RequestError, match=r"\A--checkpoint: .*environment \(HF_TOKEN\), not in a URI\Z"):
        fetch_checkpoint(EFFICIENTNET, f"hf://user:{PASSWORD}@owner/repo/model.pt")


def test_an_access_point_is_a_bucket() -> None:
    uri = "s3://arn:aws:s3:us-east-1:123456789012:accesspoint:site/a@b.wav"
    assert storage.normalise(uri, "--input") == uri


def test_a_config_file_that_is_no_yaml_is_not_quoted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(f"input: a\nsecret: {PASSWORD}: {SECRET_KEY}\n")
    assert main(["--config", str(file)]) == 2
    printed = capsys.readouterr().err
    assert f"--config: {file} is not YAML in line 2, column 23;" in printed
    assert not leaks(printed)


# --- the job, as a user runs it ---------------------------------------------------------------------------------


def leaks(text: str) -> set[str]:
    return {spelling for spelling in SPELLINGS if spelling in text}


def stored_texts(output: Path) -> Iterator[str]:
    """All bytes of an output; of Parquet, whose columns are compressed, also what they and the metadata hold."""
    for path in output.rglob("*"):
        if path.is_file():
            yield path.name
            yield path.read_bytes().decode(errors="replace")
        if path.suffix == ".parquet":
            table = pq.read_table(path)
            yield str(table.schema.metadata)
            yield str([table[name].to_pylist() for name in table.column_names if name != "embedding"])


@pytest.mark.usefixtures("secrets")
def test_a_bug_ends_with_a_traceback_without_credentials(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def embed(*_: object) -> None:
        try:
            raise KeyError(SECRET_KEY)
        except KeyError as error:
            raise TypeError(f"no method for http://user:{PASSWORD}@host?{SIGNED}") from error

    monkeypatch.setattr(embedding.driver, "embed", embed)
    assert main(["--input", "a", "--output", "b"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("Traceback (most recent call last):\n")
    assert "KeyError: '***'" in printed.err
    assert "TypeError: no method for http://***@host?X-Amz-Credential=***&" in printed.err
    assert not leaks(printed.err)


ENDPOINT_WITH_LOGIN = f"http://user:{PASSWORD}@127.0.0.1:9"
REFUSED = {
    "credentials in --input": (
        ["--input", f"s3://{KEY_ID}:{SECRET_KEY}@archive/2025"],
        "",
        "--input: a bucket name cannot",
    ),
    "an unreachable endpoint": (["--input", "s3://archive"], ENDPOINT_WITH_LOGIN, "--input: cannot list s3://archive"),
    "an endpoint that is no URL": (
        ["--input", "s3://archive"],
        f"user:{PASSWORD}@127.0.0.1:9",
        "AWS_ENDPOINT_URL=http://host:port",
    ),
    "a presigned --checkpoint": (
        ["--checkpoint", f"https://s3.amazonaws.com/b/w.pt?{SIGNED}"],
        "",
        "--checkpoint: https:// is not supported",
    ),
    "a signed key in --checkpoint": (
        ["--checkpoint", f"s3://b/w.pt?{SIGNED}"],
        ENDPOINT_WITH_LOGIN,
        "--checkpoint: s3://b/w.pt?X-Amz-Credential=***&",
    ),
    "a token in --checkpoint": (["--checkpoint", f"weights {HUB_TOKEN}"], "", "weights *** is not a file"),
    "a stray argument": (["--config", "c", f"--token={HUB_TOKEN}"], "", "unknown option --token"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_is_one_line_without_credentials(case: str, tmp_path: Path) -> None:
    arguments, endpoint, expected = REFUSED[case]
    write_audio(tmp_path / "in" / "a.wav", tone(0.1, 16_000), 16_000)
    outcome = run_embed(
        *("--input", tmp_path / "in", "--output", tmp_path / "out", "--model", EFFICIENTNET, *arguments),
        env=ENVIRONMENT | {"AWS_ENDPOINT_URL": endpoint},
    )
    assert outcome.code == 2, outcome
    assert outcome.stderr.count("\n") == 1
    assert expected in outcome.stderr
    assert not leaks(outcome.stdout + outcome.stderr)


def test_an_endpoint_with_a_login_is_refused_without_it(s3_server: str, bucket: str, tmp_path: Path) -> None:
    outcome = run_embed(
        *("--input", f"s3://{bucket}", "--output", tmp_path / "out", "--model", EFFICIENTNET, "--checkpoint", "random"),
        env=ENVIRONMENT | {"AWS_ENDPOINT_URL": s3_server.replace("://", f"://user:{PASSWORD}@")},
    )
    assert outcome.code == 2
    assert f"--input: cannot list s3://{bucket}" in outcome.stderr
    assert not leaks(outcome.stdout + outcome.stderr)


@pytest.mark.usefixtures("secrets")
def test_nothing_a_run_prints_or_stores_holds_a_credential(
    s3_api: Any, bucket: str, checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are in the environment, in the checkpoint's name as a download left it, and in what workers complain of."""
    s3_api.put_object(Bucket=bucket, Key="remote.wav", Body=b"never read")
    write_audio(tmp_path / "in" / "local a:b@c.wav", tone(2.0, 16_000), 16_000)
    checkpoint = tmp_path / f"effnet?{SIGNED}&as=.safetensors"
    checkpoint.symlink_to(checkpoints[EFFICIENTNET])
    options = {
        "input": [str(tmp_path / "in"), f"s3://{bucket}"],
        "output": str(tmp_path / "out"),
        "checkpoint": str(checkpoint),
        "model": EFFICIENTNET,
        "max-failure-rate": 1,
        "window-s": 1,
        "actors": 1,
    }
    (tmp_path / "job.yaml").write_text(json.dumps(options))
    # Workers take their environment from the process that starts Ray, not from the driver. Theirs holds no URL, and
    # that complaint quotes all of it.
    with monkeypatch.context() as of_workers:
        of_workers.setenv("AWS_ENDPOINT_URL", f"user:{PASSWORD}@127.0.0.1:9")
        with ray_of(2) as address:
            environment = {"RAY_ADDRESS": address, "AWS_ENDPOINT_URL": s3_api.meta.endpoint_url}
            outcome: Outcome = run_embed("--config", tmp_path / "job.yaml", env=environment)
    assert outcome.code == 0, outcome.stderr

    output = tmp_path / "out"
    [shard] = (output / "embeddings").iterdir()
    assert set(pq.read_table(shard)["file"].to_pylist()) == {str(tmp_path / "in" / "local a:b@c.wav")}
    assert b"effnet?X-Amz-Credential=***&" in shard.read_bytes()
    [failure] = pq.read_table(output / "failures").to_pylist()
    assert (failure["file"], failure["kind"]) == (f"s3://{bucket}/remote.wav", "io")
    assert "Invalid endpoint: ***127.0.0.1:9" in failure["message"]
    report = json.loads((output / "report.json").read_text())
    assert report["failures"]["io"]["examples"] == [f"s3://{bucket}/remote.wav: {failure['message']}"]
    assert "effnet?X-Amz-Credential=***&" in json.loads((output / "run.json").read_text())["settings"]["checkpoint"]
    for text in (outcome.stdout, outcome.stderr, *stored_texts(output)):
        assert not leaks(text)

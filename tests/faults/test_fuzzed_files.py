"""Random content in every file that a job reads back.

The result must be correct, or an error of one line: never a traceback, and never a write outside the output. Each file
is tried with random bytes, with random JSON, and with valid content in which some values or bytes are changed.
"""

import copy
import io
import json
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedding.config_file import read_config_file
from embedding.encoding import label_map
from embedding.errors import RequestError
from embedding.exporting.destination import replace_folder
from embedding.labelling.label_tables import read_label_table
from embedding.listing.listing import list_recordings
from embedding.output import claim
from embedding.output.claim import ClaimHolder, hold_claim
from embedding.output.recordings_table import RECORDINGS_TABLE
from embedding.overview.png_files import result_figures
from embedding.overview.stored_results import StoredResults
from embedding.probing.label_manifest import read_labels
from embedding.where import choose_recordings
from jobs.embed import parse
from jobs.export import main as export
from jobs.report import main as report
from tests.support.shards import shard, write_output

FEW, MANY = 25, 2000  # cases for each kind of files

TEXTS = st.text(max_size=12) | st.sampled_from(
    ["../../victim", "/", "..", "\0", "0000000000aa", "2025-01-01", "-1", "1e308"]
)
NUMBERS = st.integers() | st.floats() | st.sampled_from([-1, 0, 2**31, 2**63, 10**400])
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)

RUN = {"settings": {"model": "m", "window_s": 5.0}, "options": {"input": ["/a"]}, "versions": {"ray": "2"}}
PAST_RUN = {"run_id": "0000000000aa", "host": "h", "started": "2025-01-01T00:00:00+00:00", "wall_s": 1.0}
BALANCE = {"listed": 1, "already_done": 0, "embedded": 1, "failed": 0, "balanced": True}
REPORT = {"state": "complete", "recordings": BALANCE, "output": {"windows": 3}, "runs": [PAST_RUN]}
EXPORT = {"format": "npy", "names": ["export.json"]}


def paths_in(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths to all values of a JSON document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(inner for key, item in items for inner in paths_in(item, (*path, key)))]


@st.composite
def documents(draw: st.DrawFn, valid: Any) -> bytes:
    """A valid document with one or two changed values, or any bytes or JSON."""
    if draw(st.integers(0, 3)) == 0:
        return draw(st.binary(max_size=40) | VALUES.map(lambda value: json.dumps(value).encode()))
    document = {"": copy.deepcopy(valid)}
    for path in draw(st.lists(st.sampled_from(paths_in(valid)), min_size=1, max_size=2)):
        *parents, last = ("", *path)
        container: Any = document
        try:
            for key in parents:
                container = container[key]
            container[last] = draw(VALUES)
        except (KeyError, IndexError, TypeError):  # the first change has replaced a part of this path
            continue
    return json.dumps(document[""]).encode()


@st.composite
def changed_bytes(draw: st.DrawFn, valid: bytes) -> bytes:
    """Valid content with some bytes changed, cut off or added, or any bytes."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=60))
    content = bytearray(valid)
    for _ in range(draw(st.integers(0, 4))):
        content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    return bytes(content[: draw(st.integers(0, len(content)) | st.just(len(content)))]) + draw(st.binary(max_size=4))


def as_parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


COLUMNS = st.sampled_from(
    [
        pa.array([1, None]),
        pa.array(["a", "../b"]),
        pa.array([["a"], None]),
        pa.array([[1.0], [2.0, 3.0]]),
        pa.array([{"a": 1}, {"a": None}]),
        pa.array([b"\xff", b"a"]),
        pa.array([b"\xff", b"a"]).view(pa.string()),
        pa.array([float("nan"), 1e308]),
        pa.array([True, False]),
        pa.array(["x", "y"]).dictionary_encode(),
        pa.nulls(2),
        pa.array([[1, 2, 3, 4], [1, None, 3, 4]], pa.list_(pa.float32(), 4)),
        pa.array([-(2**63), 2**63 - 1]),
        pa.array([-1, 2**31 - 1], pa.int32()),
    ]
)


@st.composite
def tables(draw: st.DrawFn, valid: pa.Table) -> bytes:
    """A valid Parquet file with changed columns or changed bytes."""
    if draw(st.booleans()):
        return draw(changed_bytes(as_parquet(valid)))
    table = valid
    for name in draw(st.lists(st.sampled_from(valid.column_names), max_size=3)):
        table = table.set_column(table.column_names.index(name), name, draw(COLUMNS))
    metadata = draw(
        st.dictionaries(
            st.sampled_from([b"avex_batch.settings", b"avex_batch.audio_hashes", b"avex_batch.recorder_facts"]),
            st.binary(max_size=9),
        )
    )
    return as_parquet(table.replace_schema_metadata(metadata))


def check_job(job: Callable[[list[str]], int], *arguments: object) -> None:
    """Run a job in this process, and check that it ends with an exit code and prints at most one line of errors."""
    stderr = io.StringIO()
    with redirect_stderr(stderr), redirect_stdout(io.StringIO()):
        code = job([*map(str, arguments)])
    assert code in (0, 1, 2)
    assert "Traceback" not in stderr.getvalue(), stderr.getvalue()
    assert stderr.getvalue().count("\n") <= 1


def check_call(call: Callable[[], object]) -> None:
    """Check that a call gives a result, or raises a RequestError of one line."""
    try:
        call()
    except RequestError as error:
        assert "\n" not in str(error)  # noqa: PT017 — the call may also succeed


def fresh_output(folder: Path) -> Path:
    """Return an output with one shard, without the changes of the last case."""
    root = folder / "out"
    if not root.exists():
        write_output(str(root), {"/a/1.wav": np.ones((3, 4), np.float32)}, {"model": "m"}, 1)
    for name in ("run.json", "report.json", "claim.json", "embeddings/x.parquet", "failures/x.parquet"):
        (root / name).unlink(missing_ok=True)
    (root / "failures").mkdir(exist_ok=True)
    return root


def check_report_with(name: str) -> Callable[[Path, bytes], None]:
    """Return a check of jobs.report, and for shards of jobs.export, on an output with a file of random content."""

    def check(folder: Path, content: bytes) -> None:
        root = fresh_output(folder)
        (root / name).write_bytes(content)
        check_job(report, root)
        if name.startswith("embeddings"):
            check_job(export, root, "--to", "npy", folder / "exported")

    return check


def check_claim(folder: Path, content: bytes) -> None:
    root = fresh_output(folder)
    (root / "claim.json").write_bytes(content)
    check_job(report, root)

    def take() -> None:
        with hold_claim(str(root), "0000000000bb", lambda _: None):
            pass

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(claim, "RENEW_S", 0.002)
        patched.setattr(claim, "LAPSE_S", 0.002)
        check_call(take)


def read_labels_of(uri: str) -> None:
    read_labels(read_label_table(uri, "label", None, list), uri, None)


def check_manifest(folder: Path, content: bytes) -> None:
    for name in ("a.csv", "a.parquet"):
        (folder / name).write_bytes(content)
        check_call(lambda name=name: list_recordings([str(folder / name)]))
        check_call(lambda name=name: read_labels_of(str(folder / name)))


def check_recordings(folder: Path, content: bytes) -> None:
    root = fresh_output(folder)
    (root / "report.json").write_text('{"state": "complete"}')
    (root / "recordings.parquet").write_bytes(content)
    check_call(lambda: choose_recordings(str(root), "site = 'A'"))
    check_job(export, root, "--to", "npy", folder / "exported", "--where", "site = 'A' or true")


def check_results(folder: Path, content: bytes) -> None:
    for name in ("detections/a/summary.json", "probes/a/probe.json"):
        (folder / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "out" / name).write_bytes(content)
    results = StoredResults.read(str(folder / "out"))
    for figure in result_figures(results).values():
        figure.to_json()
    assert all("\n" not in warning for warning in results.warnings)


def check_annotations(folder: Path, content: bytes) -> None:
    for name in ("a.txt", "a.csv"):
        (folder / name).write_bytes(content)
        check_call(lambda name=name: read_label_table(str(folder / name), None, None, lambda: STORED))
        (folder / name).unlink()


def check_label_map(_: Path, content: bytes) -> None:
    check_call(lambda: label_map.parse_label_map("label_map.json", content))


def check_options(folder: Path, content: bytes) -> None:
    (folder / "job.yaml").write_bytes(content)
    check_call(lambda: read_config_file(str(folder / "job.yaml")))
    check_call(lambda: parse(["--config", str(folder / "job.yaml")]))


def check_export(folder: Path, content: bytes) -> None:
    destination = folder / "export"
    destination.mkdir(exist_ok=True)
    (destination / "export.json").write_bytes(content)

    def replace() -> None:
        with replace_folder(destination, "npy") as new:
            (new / "export.json").write_bytes(content)

    check_call(replace)
    assert (destination / "export.json").read_bytes() == content


HOLDER = asdict(ClaimHolder.this_process("0000000000aa")) | {"process_start": 1.0}  # its process has ended
MANIFEST = pa.table(
    {"file": ["/a.wav", "b.wav"], "label": ["x", "y"], "start_time": [0.0, 1.0], "end_time": [1.0, 2.0]}
)
CSV = b"file,label,start_time,end_time\n/a.wav,x,0,1\nb.wav,y;z,1,2\n"
YAML = b'input: [x, "y"]\noutput: z\nwindow-s: 3\nbatch_size: 8\nmask_padding: true\nlayers: 0,-1\nlimit: 1_000\n'
STORED = ["/x/one.wav", "/x/two.wav"]
RECORDINGS = pa.Table.from_pylist(
    [{"file": "/a/1.wav", "file_id": 1000, "site": "A"}, {"file": "/a/2.wav", "file_id": 7, "latitude": 47.0}],
    RECORDINGS_TABLE,
)
SUMMARY = {
    "classes": [
        {"label": "a", "detections": 3, "recordings": 1, "by_hour": [1, 2] + [0] * 22, "by_date": {"2025-05-03": 3}}
        | {"density": {"judged": 9, "density": 0.1, "density_low": 0.0, "density_high": 0.2, "windows_with_call": 1.0}}
    ]
}
PROBE = {"classes": ["a", "b"], "curves": {"a": [[0.0, 1.0], [1.0, 0.5]]}, "confusions": [[3, 0], [1, 2]]}
ANNOTATIONS = [
    b"Selection\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\tHigh Freq (Hz)\tBegin Path\tSpecies\r\n"
    b"1\t0.5\t1,5\t0\t8000\tC:\\x\\one.wav\towl\r\n2\t3\t3\t0\t8000\ttwo.wav\t\r\n",
    "0.5\t1.5\towl\n\\\t100\t200\n3\t3\twren\n".encode("utf-16"),
    b"file,start_time,end_time,owl,wren\none.wav,0,3,1,0\ntwo.wav,3,6,,1\n",
    b"audio_file,start_time,end_time,annotation,low_f,high_f\none.wav,0,3,owl,1,2\n",
    b"file,start_time,end_time,label,verdict\n/x/one.wav,0,3,owl,absent\n",
]
FILES: dict[str, tuple[st.SearchStrategy[bytes], Callable[[Path, bytes], None]]] = {
    "run.json": (documents(RUN), check_report_with("run.json")),
    "report.json": (documents(REPORT), check_report_with("report.json")),
    "claim.json": (documents(HOLDER), check_claim),
    "shards": (tables(shard((1, 0, 2), (1, 1, 2))), check_report_with("embeddings/x.parquet")),
    "manifests": (tables(MANIFEST) | changed_bytes(CSV), check_manifest),
    "label maps": (
        documents({"a": 0, "b": 1}),
        lambda _, content: check_call(lambda: label_map.parse_label_map("map", content)),
    ),
    "options files": (changed_bytes(YAML) | st.text().map(lambda text: text.encode(errors="replace")), check_options),
    "export.json": (documents(EXPORT), check_export),
    "recordings.parquet": (tables(RECORDINGS), check_recordings),
    "results": (documents(SUMMARY) | documents(PROBE), check_results),
    "annotations": (
        st.sampled_from(ANNOTATIONS).flatmap(changed_bytes) | st.text().map(lambda text: text.encode(errors="replace")),
        check_annotations,
    ),
}


def try_cases(name: str, folder: Path, n: int, *, is_derandomised: bool) -> None:
    """Check a kind of files with ``n`` cases, and that no other file is written."""
    content, check = FILES[name]
    (folder / "victim").write_text("mine")

    @settings(
        max_examples=n,
        database=None,
        derandomize=is_derandomised,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    )
    @given(content)
    def try_case(content: bytes) -> None:
        check(folder, content)
        assert (folder / "victim").read_text() == "mine"

    try_case()
    expected = {"victim", "out", "exported", "export", "a.csv", "a.parquet", "a.txt", "job.yaml"}
    assert {path.name for path in folder.iterdir()} <= expected


@pytest.mark.parametrize("name", FILES)
def test_random_content_gives_a_result_or_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / "cases").mkdir()
    try_cases(name, tmp_path / "cases", FEW, is_derandomised=True)
    assert [path.name for path in tmp_path.iterdir()] == ["cases"]


@pytest.mark.long
@pytest.mark.parametrize("name", FILES)
def test_many_cases_of_random_content_give_a_result_or_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / "cases").mkdir()
    try_cases(name, tmp_path / "cases", MANY, is_derandomised=False)
    assert [path.name for path in tmp_path.iterdir()] == ["cases"]

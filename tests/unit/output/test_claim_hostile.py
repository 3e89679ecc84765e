"""A claim.json that is damaged, or written to do harm."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from embedding import storage
from embedding.output import claim as module
from embedding.output.claim import UNKNOWN_HOLDER, ClaimHolder, check_holder, hold_claim, read_holder
from embedding.storage import s3
from tests.support.claims import OURS, THEIRS, dead_holder, leave_claim


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RENEW_S", 0.05)
    monkeypatch.setattr(module, "LAPSE_S", 0.3)


HOSTILE_RUN_IDS = [
    "d/../../victim.txt",
    "../victim.txt",
    "/../victim.txt",
    "",
    "0000000000BB",
    "0000000000bb\n",
    "a" * 99,
]


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("run_id", HOSTILE_RUN_IDS)
def test_a_run_id_of_another_form_reaches_no_file_outside_the_output(tmp_path: Path, run_id: str) -> None:
    (tmp_path / "victim.txt").write_text("mine")
    leave_claim(tmp_path / "out", dead_holder(run_id))
    with hold_claim(str(tmp_path / "out"), OURS, lambda _: None):
        check_holder(str(tmp_path / "out"), OURS)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["out", "victim.txt"]
    assert (tmp_path / "victim.txt").read_text() == "mine"


@pytest.mark.usefixtures("fast")
def test_in_s3_a_run_id_of_another_form_reaches_no_other_object(bucket: str) -> None:
    storage.write_bytes(f"s3://{bucket}/victim.txt", b"mine")
    storage.write_bytes(f"s3://{bucket}/out/claim.json", json.dumps(asdict(dead_holder("d/../../victim.txt"))).encode())
    created: list[str] = []

    def record(uri: str, data: bytes) -> bool:
        created.append(uri)
        return create(uri, data)

    create = storage.create_bytes
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(storage, "create_bytes", record)
        with hold_claim(f"s3://{bucket}/out", OURS, lambda _: None):
            check_holder(f"s3://{bucket}/out", OURS)
    assert {uri for uri in created if ".." in uri} == set()
    assert [key for key, _, _ in s3.list_objects(f"s3://{bucket}/")] == [f"{bucket}/victim.txt"]


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize(
    "changes",
    [
        *({"pid": number} for number in (-1, 0, 1 << 70, "x")),
        *({"process_start": number} for number in ("x", -1, float("nan"))),
        *({"host": None}, {"machine": []}, {"renewals": -1}, {"started": {}}),
    ],
    ids=str,
)
def test_a_claim_with_an_impossible_value_has_an_unknown_holder(tmp_path: Path, changes: dict[str, Any]) -> None:
    content = asdict(ClaimHolder.this_process(THEIRS)) | changes
    storage.write_bytes(str(tmp_path / "claim.json"), json.dumps(content).encode())
    assert read_holder(str(tmp_path / "claim.json")) == UNKNOWN_HOLDER
    waited_for: list[ClaimHolder] = []
    with hold_claim(str(tmp_path), OURS, waited_for.append):
        check_holder(str(tmp_path), OURS)
    assert waited_for == [UNKNOWN_HOLDER]


def test_a_claim_of_a_later_version_may_have_more_fields(tmp_path: Path) -> None:
    holder = ClaimHolder.this_process(THEIRS)
    storage.write_bytes(str(tmp_path / "claim.json"), json.dumps(asdict(holder) | {"zone": "eu"}).encode())
    assert read_holder(str(tmp_path / "claim.json")) == holder

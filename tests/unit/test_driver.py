"""Decisions of the driver before it knows what Ray has."""

from pathlib import Path

import pytest

from embedding.driver import encodes_on_own_cpus


@pytest.mark.parametrize(
    ("device", "devices", "expected"),
    [
        ("cpu", [], True),
        ("cpu", ["nvidia0"], True),
        ("auto", [], True),
        ("auto", ["nvidia0", "nvidiactl"], False),
        ("auto", ["nvidiactl"], True),  # a driver without a GPU
        ("cuda", [], False),
    ],
)
def test_encoders_are_expected_on_cpus_where_there_is_no_gpu(
    device: str, devices: list[str], expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in devices:
        (tmp_path / name).touch()
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert encodes_on_own_cpus(device, tmp_path) == expected
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert not encodes_on_own_cpus(device, tmp_path)

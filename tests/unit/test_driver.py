"""Decisions of the driver before it knows what Ray has."""

import subprocess
import sys
from pathlib import Path

import pytest

from embedding.driver import encodes_on_own_cpus
from tests.support.commands import ROOT


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


def test_the_driver_imports_no_package_of_the_encoders() -> None:
    """Each would delay every command; SciPy alone by a quarter of the driver's imports."""
    program = (
        "import sys, jobs.embed, embedding.driver; print({'ray', 'torch', 'openvino', 'scipy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"

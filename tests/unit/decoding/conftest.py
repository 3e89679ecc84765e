"""Two ways in which a recording is decoded."""

import pytest


@pytest.fixture(params=[600, 1], ids=["decoded whole", "decoded in passing"])
def either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recording of some seconds, decoded as a short one is and as a long one."""
    monkeypatch.setattr("embedding.decoding.decode.WHOLE_RECORDING_S", request.param)
    monkeypatch.setattr("embedding.decoding.audio.BLOCK_SAMPLES", 4_000)

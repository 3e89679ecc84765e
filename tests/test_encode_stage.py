"""What goes wrong while an encoder loads: whether it is told at once, or another encoder may fare better."""

from types import SimpleNamespace
from typing import Any

import pytest

from embedding import pipeline
from embedding.errors import RunError
from embedding.pipeline import EncodeStage
from embedding.scheduling.resources import Plan

PLAN = Plan("cpu", 1, 0.75, 0.0, 1, 0.125, 1, 0.0625, 1)


def stage_of(error: Exception, monkeypatch: pytest.MonkeyPatch) -> EncodeStage:
    """An encoder on a node where ``error`` is raised before it has loaded."""

    def check() -> None:
        raise error

    monkeypatch.setattr(pipeline, "Reporter", lambda _: SimpleNamespace(open_batches=dict))
    job: Any = SimpleNamespace(shared_paths=SimpleNamespace(check=check))
    return EncodeStage(job, PLAN, None, None)


@pytest.mark.parametrize("error", [ZeroDivisionError("a bug"), RunError("damaged weights")])
def test_what_would_befall_every_encoder_is_raised_by_the_first_call(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = stage_of(error, monkeypatch)
    with pytest.raises(type(error), match=str(error)):
        stage(None)  # type: ignore[arg-type] — it comes to no windows


def test_what_may_be_this_nodes_alone_ends_the_encoder_so_that_another_one_is_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(OSError, match="No space left"):
        stage_of(OSError(28, "No space left on device"), monkeypatch)

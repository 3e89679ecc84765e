"""The progress of a run, in a terminal and in a log."""

import pytest

from embedding.cli import progress_display
from embedding.cli.progress_display import ProgressDisplay, describe
from embedding.counters import Counters
from embedding.planning.placement import ClusterResources, plan_placement
from tests.support.terminals import make_counters, terminal_and_text


def read_resources() -> ClusterResources:
    return ClusterResources(n_cpus=16, n_gpus=2, memory_bytes=0, smallest_node_cpus=4, n_nodes=4, is_own=False)


def test_a_log_gets_one_line_every_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr(progress_display.time, "monotonic", lambda: now_s)
    terminal, text = terminal_and_text()
    with ProgressDisplay(terminal, 40, 4000.0) as display:
        for second in range(35):
            now_s = 100.0 + second
            counters = make_counters(recordings=second, windows_encoded=second + 1, audio_encoded_s=10.0 * (second + 1))
            display(counters, read_resources)
    lines = text.getvalue().splitlines()
    assert [line.split(" · ")[0] for line in lines] == ["10/40 recordings", "20/40 recordings", "30/40 recordings"]
    assert "31 windows · 310 s of audio · " in lines[-1]
    assert lines[-1].endswith(" left")


def test_a_run_without_windows_says_once_a_minute_what_it_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr(progress_display.time, "monotonic", lambda: now_s)
    terminal, text = terminal_and_text()
    counters = Counters()
    with ProgressDisplay(terminal, 40, 4000.0) as display:
        display.starting(plan_placement(read_resources(), "cuda", 8))
        for second in range(400):
            now_s = 100.0 + second
            if second == 130:
                counters.encoders = 2
            if second == 200:
                counters.add("encode", 1.0, windows_encoded=1)
            display(counters, read_resources)
    lines = [line for line in text.getvalue().splitlines() if "recordings ·" not in line]
    assert lines == [
        "loading the model into 8 GPU workers (about 15 s)",
        "not all workers fit yet: starting with those that do, others wait for the autoscaler",
        "no window for 1 min 0 s: 0 of 8 encoders have loaded; Ray has 16 CPUs and 2 GPUs on 4 nodes",
        "no window for 2 min 0 s: 0 of 8 encoders have loaded; Ray has 16 CPUs and 2 GPUs on 4 nodes",
        "no window for 3 min 0 s: 2 of 8 encoders have loaded; Ray has 16 CPUs and 2 GPUs on 4 nodes",
        "no window for 1 min 0 s: 2 of 8 encoders have loaded; Ray has 16 CPUs and 2 GPUs on 4 nodes",
        "no window for 2 min 0 s: 2 of 8 encoders have loaded; Ray has 16 CPUs and 2 GPUs on 4 nodes",
        "no window for 3 min 0 s: 2 of 8 encoders have loaded; Ray has 16 CPUs and 2 GPUs on 4 nodes",
    ]


def test_a_terminal_gets_a_bar() -> None:
    terminal, text = terminal_and_text(is_terminal=True)
    with ProgressDisplay(terminal, 40, 4000.0) as display:
        display(make_counters(recordings=10, windows_encoded=20, audio_encoded_s=100.0), read_resources)
    drawn = text.getvalue()
    assert "10/40" in drawn
    assert "━" in drawn
    assert "20 windows" in drawn


def test_progress_has_speed_failures_and_time_left() -> None:
    counters = make_counters(recordings=5, windows_encoded=2060, audio_encoded_s=20_600.0)
    counters.failed = 2
    assert describe(counters, audio_s=41_200.0, elapsed_s=112.0) == (
        "2,060 windows · 5.7 h of audio · 184 × real time · 2 failed · 1 min 52 s left"
    )

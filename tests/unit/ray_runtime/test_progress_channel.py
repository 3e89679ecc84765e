"""The progress channel: counts of workers, and totals that survive a restart of the actor."""

import pickle

from embedding.ray_runtime.progress_actor import GPU_FAULTS, RunProgress
from embedding.ray_runtime.progress_channel import ReceivedProgress

ZERO = frozenset([0])


def test_tries_of_a_task_are_counted() -> None:
    progress = RunProgress()
    assert [progress.begin_task(task) for task in ("a", "b", "a", "a", "b")] == [1, 1, 2, 3, 2]


def test_tasks_and_encoders_that_start_again_are_counted() -> None:
    progress = RunProgress()
    for task in ("a", "b", "a", "a", "b"):
        progress.begin_task(task)
    for again in (False, False, True):
        progress.encoder_ready(again=again)
    assert (progress.counters.tasks_again, progress.counters.encoders, progress.counters.encoders_again) == (3, 2, 1)


def test_the_first_window_counts_when_it_is_encoded_and_not_when_its_batch_ends() -> None:
    progress = RunProgress()
    progress.window_encoded()
    first_s = progress.counters.reached_at_s["first_window"]
    progress.window_encoded()
    progress.add("encode", 1.0, {0: {"windows_encoded": 64}})
    assert progress.counters.reached_at_s["first_window"] == first_s < progress.counters.reached_at_s["last_window"]
    assert progress.counters.windows_encoded == 64


def test_batches_that_have_started_and_not_ended_are_open() -> None:
    progress = RunProgress()
    for n in range(1, 4):
        progress.begin_batch("ends")
        progress.end_batch("ends")
        progress.begin_batch("kills")
        progress.begin_batch("ends late")
        assert progress.open_batches() == {"kills": n, "ends late": n}
    progress.end_batch("ends late")
    progress.end_batch("never started")
    assert progress.open_batches() == {"kills": 3}


def test_a_recording_that_fails_several_times_counts_once() -> None:
    progress = RunProgress()
    progress.add_failed([(0, 1), (0, 2)])
    progress.add_failed([(0, 1)])
    assert progress.counters.failed == 2


def test_a_failure_counts_for_its_target() -> None:
    progress = RunProgress()
    progress.add_failed([(0, 1), (1, 1), (1, 2)])
    progress.add_failed([(1, 2)])
    progress.add("encode", 1.0, {1: {"windows_encoded": 3, "audio_encoded_s": 1.5}})
    assert progress.counters.failed == 2
    by_target = [progress.counters.of_target(target) for target in range(3)]
    assert [counters.failed for counters in by_target] == [1, 2, 0]
    assert [counters.audio_encoded_s for counters in by_target] == [0.0, 1.5, 0.0]


def test_a_request_to_stop_stays() -> None:
    progress = RunProgress()
    assert not progress.is_stopping()
    progress.stop()
    progress.stop()
    assert progress.is_stopping()


def test_one_batch_of_a_run_is_compared_with_fp32_for_each_target() -> None:
    """Also in the process that encodes the batch again, after the first one died."""
    progress = RunProgress()
    calls = [("first", [0]), ("second", [0, 1]), ("first", [0]), ("third", [0, 1])]
    assert [progress.choose_measured(*call) for call in calls] == [[0], [1], [0], []]


def test_the_agreement_of_each_target_reaches_the_driver_and_survives_a_restart() -> None:
    received, first, second = ReceivedProgress(), RunProgress(), RunProgress()
    first.add_agreements({1: {"windows": 8, "least": 0.99, "median": 0.999}})
    for progress in (first, second):
        received.add(*progress.snapshot(*received.known))
    assert received.counters.of_target(1).agreements == {1: {"windows": 8, "least": 0.99, "median": 0.999}}
    assert received.counters.of_target(0).agreements == {}


def read(progress: RunProgress, received: ReceivedProgress) -> list[tuple[int, int]]:
    """Read the actor as the driver does, from another process; return the unchanged recordings of the answer."""
    counters, unchanged = pickle.loads(pickle.dumps(progress.snapshot(*received.known)))
    received.add(counters, unchanged)
    return unchanged


def test_counts_of_a_process_that_died_are_kept() -> None:
    received, first, second, third = ReceivedProgress(), RunProgress(), RunProgress(), RunProgress()
    first.add("encode", 1.0, windows_encoded=5)
    read(first, received)
    assert received.counters.windows_encoded == 5
    first.add("encode", 1.0, windows_encoded=5)
    for progress in (first, first, second):
        read(progress, received)
        assert received.counters.windows_encoded == 10
    second.add("encode", 1.0, windows_encoded=1)
    second.add_failed([(0, 2)])
    read(second, received)
    assert received.counters.windows_encoded == 11
    third.add("encode", 1.0, windows_encoded=1)
    read(third, received)
    total = received.counters
    assert (total.windows_encoded, total.failed, total.busy_s["encode"]) == (12, 1, 4.0)
    assert total.reached_at_s["first_window"] == first.counters.reached_at_s["first_window"]


def test_each_process_sends_its_unchanged_recordings_once() -> None:
    received, first, second = ReceivedProgress(), RunProgress(), RunProgress()
    first.add_unchanged([(1, ZERO), (2, ZERO)])
    assert read(first, received) == [(1, ZERO), (2, ZERO)]
    assert read(first, received) == []
    first.add_unchanged([(3, ZERO)])
    assert read(first, received) == [(3, ZERO)]
    second.add_unchanged([(4, ZERO), (3, ZERO)])
    assert read(second, received) == [(4, ZERO), (3, ZERO)]
    second.add_unchanged([(5, frozenset([0, 1]))])
    assert read(second, received) == [(5, frozenset([0, 1]))]
    assert received.unchanged == {0: {1, 2, 3, 4, 5}, 1: {5}}


def test_two_processes_never_have_the_same_origin() -> None:
    assert RunProgress().counters.origin != RunProgress().counters.origin


def test_the_leg_ends_when_a_gpu_is_given_up() -> None:
    progress = RunProgress()
    for n in range(1, GPU_FAULTS):
        progress.gpu_failed("GPU 1", f"error {n}", [])
        progress.gpu_failed(f"GPU {n + 1}", "another error", [])
    assert (progress.broken_gpus(), progress.is_stopping()) == ({}, False)
    progress.gpu_failed("GPU 1", "the last error", [])
    assert (progress.broken_gpus(), progress.is_stopping()) == ({"GPU 1": "the last error"}, True)
    progress.begin_leg()
    assert (progress.broken_gpus(), progress.is_stopping()) == ({"GPU 1": "the last error"}, False)


def test_a_gpu_that_fails_repeatedly_counts_once_against_a_batch() -> None:
    progress = RunProgress()
    for gpu in ("GPU 1", "GPU 2"):
        for _ in range(GPU_FAULTS):
            progress.begin_batch("a")
            progress.begin_batch("b")
            progress.gpu_failed(gpu, "error", ["a", "b"])
    assert progress.open_batches() == {"a": 2, "b": 2}

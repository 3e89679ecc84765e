"""What workers and driver tell each other; and counts that outlive the process that counts."""

import pickle

from embedding.ray_runtime.progress_actor import GPU_FAULTS, RunProgress
from embedding.ray_runtime.progress_channel import ReceivedProgress

ZERO = frozenset([0])


def test_each_try_of_a_task_is_counted() -> None:
    progress = RunProgress()
    assert [progress.begin_task(task) for task in ("a", "b", "a", "a", "b")] == [1, 1, 2, 3, 2]


def test_what_was_begun_again_is_counted() -> None:
    progress = RunProgress()
    for task in ("a", "b", "a", "a", "b"):
        progress.begin_task(task)
    for again in (False, False, True):
        progress.encoder_ready(again=again)
    assert (progress.counters.tasks_again, progress.counters.encoders, progress.counters.encoders_again) == (3, 2, 1)


def test_batches_that_were_begun_and_not_ended_are_open() -> None:
    progress = RunProgress()
    for n in range(1, 4):
        progress.begin_batch("ends")
        progress.end_batch("ends")
        progress.begin_batch("kills")
        progress.begin_batch("ends at last")
        assert progress.open_batches() == {"kills": n, "ends at last": n}
    progress.end_batch("ends at last")
    progress.end_batch("never begun")
    assert progress.open_batches() == {"kills": 3}


def test_a_recording_fails_once_however_often_it_is_told() -> None:
    progress = RunProgress()
    progress.add_failed([(0, 1), (0, 2)])
    progress.add_failed([(0, 1)])
    assert progress.counters.failed == 2


def test_a_failure_counts_for_the_model_that_it_is_of() -> None:
    progress = RunProgress()
    progress.add_failed([(0, 1), (1, 1), (1, 2)])
    progress.add_failed([(1, 2)])
    progress.add("encode", 1.0, {1: {"windows_encoded": 3, "audio_encoded_s": 1.5}})
    assert progress.counters.failed == 2
    alone = [progress.counters.of_target(target) for target in range(3)]
    assert [of_it.failed for of_it in alone] == [1, 2, 0]
    assert [of_it.audio_encoded_s for of_it in alone] == [0.0, 1.5, 0.0]


def test_a_wish_to_stop_stays() -> None:
    progress = RunProgress()
    assert not progress.is_stopping()
    progress.stop()
    progress.stop()
    assert progress.is_stopping()


def tell(progress: RunProgress, heard: ReceivedProgress) -> list[tuple[int, int]]:
    """One question and its answer, as between two processes; the recordings that were told in it."""
    counters, unchanged = pickle.loads(pickle.dumps(progress.snapshot(*heard.known)))
    heard.add(counters, unchanged)
    return unchanged


def test_what_was_heard_of_a_process_that_died_still_counts() -> None:
    heard, first, second, third = ReceivedProgress(), RunProgress(), RunProgress(), RunProgress()
    first.add("encode", 1.0, windows_encoded=5)
    tell(first, heard)
    assert heard.counters.windows_encoded == 5
    first.add("encode", 1.0, windows_encoded=5)
    for progress in (first, first, second):
        tell(progress, heard)
        assert heard.counters.windows_encoded == 10
    second.add("encode", 1.0, windows_encoded=1)
    second.add_failed([(0, 2)])
    tell(second, heard)
    assert heard.counters.windows_encoded == 11
    third.add("encode", 1.0, windows_encoded=1)
    tell(third, heard)
    assert (heard.counters.windows_encoded, heard.counters.failed, heard.counters.busy_s["encode"]) == (12, 1, 4.0)
    assert heard.counters.first_window_at_s == first.counters.first_window_at_s


def test_unchanged_recordings_are_told_once_and_by_each_process_from_its_first() -> None:
    heard, first, second = ReceivedProgress(), RunProgress(), RunProgress()
    first.add_unchanged([(1, ZERO), (2, ZERO)])
    assert tell(first, heard) == [(1, ZERO), (2, ZERO)]
    assert tell(first, heard) == []
    first.add_unchanged([(3, ZERO)])
    assert tell(first, heard) == [(3, ZERO)]
    second.add_unchanged([(4, ZERO), (3, ZERO)])
    assert tell(second, heard) == [(4, ZERO), (3, ZERO)]
    second.add_unchanged([(5, frozenset([0, 1]))])
    assert tell(second, heard) == [(5, frozenset([0, 1]))]
    assert heard.unchanged == {0: {1, 2, 3, 4, 5}, 1: {5}}


def test_two_processes_never_have_the_same_origin() -> None:
    assert RunProgress().counters.origin != RunProgress().counters.origin


def test_a_gpu_is_given_up_after_its_last_fault_and_the_leg_ends() -> None:
    progress = RunProgress()
    for n in range(1, GPU_FAULTS):
        progress.gpu_failed("GPU 1", f"error {n}", [])
        progress.gpu_failed(f"GPU {n + 1}", "another one", [])
    assert (progress.broken_gpus(), progress.is_stopping()) == ({}, False)
    progress.gpu_failed("GPU 1", "the last", [])
    assert (progress.broken_gpus(), progress.is_stopping()) == ({"GPU 1": "the last"}, True)
    progress.begin_leg()
    assert (progress.broken_gpus(), progress.is_stopping()) == ({"GPU 1": "the last"}, False)


def test_a_gpu_that_fails_again_and_again_counts_once_against_a_batch() -> None:
    progress = RunProgress()
    for gpu in ("GPU 1", "GPU 2"):
        for _ in range(GPU_FAULTS):
            progress.begin_batch("a")
            progress.begin_batch("b")
            progress.gpu_failed(gpu, "error", ["a", "b"])
    assert progress.open_batches() == {"a": 2, "b": 2}

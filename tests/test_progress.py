"""What workers and driver tell each other; and counts that outlive the process that counts."""

import pickle
from collections import Counter

from embedding.cluster import Line
from embedding.progress import ENCODE_TRIES, Progress
from embedding.report import Tally


def test_each_try_of_a_task_is_counted() -> None:
    progress = Progress()
    assert [progress.begin_task(task) for task in ("a", "b", "a", "a", "b")] == [1, 1, 2, 3, 2]


def test_a_batch_is_fatal_when_it_was_begun_often_and_never_ended() -> None:
    progress = Progress()
    for _ in range(ENCODE_TRIES):
        progress.begin_batch("ends")
        progress.end_batch("ends")
        assert progress.fatal_batches() == set()
        progress.begin_batch("kills")
        progress.begin_batch("ends at last")
    progress.end_batch("ends at last")
    progress.end_batch("never begun")
    assert progress.fatal_batches() == {"kills"}


def test_a_recording_fails_once_however_often_it_is_told() -> None:
    progress = Progress()
    progress.add_failures([(1, "io"), (2, "empty")])
    progress.add_failures([(1, "corrupt")])
    assert Counter(progress.snapshot().failed_ids.values()) == {"io": 1, "empty": 1}


def test_recordings_that_are_unchanged_are_gathered() -> None:
    progress = Progress()
    progress.add_unchanged([1, 2])
    progress.add_unchanged([2, 3])
    assert progress.snapshot().unchanged_ids == {1, 2, 3}


def test_a_wish_to_stop_stays() -> None:
    progress = Progress()
    assert not progress.is_stopping()
    progress.stop()
    progress.stop()
    assert progress.is_stopping()


def hearing() -> Line:
    """The driver's end, without a cluster at the other."""
    line = object.__new__(Line)
    line._before = Tally()
    line._last = Tally(origin=line._before.origin)
    return line


def heard(line: Line, progress: Progress) -> Tally:
    return line._heard(pickle.loads(pickle.dumps(progress.snapshot())))


def test_what_was_heard_of_a_process_that_died_still_counts() -> None:
    line, first, second, third = hearing(), Progress(), Progress(), Progress()
    first.add("encode", 1.0, windows_encoded=5)
    assert heard(line, first).windows_encoded == 5
    first.add("encode", 1.0, windows_encoded=5)
    first.add_unchanged([1])
    assert heard(line, first).windows_encoded == 10
    assert heard(line, first).windows_encoded == 10
    assert heard(line, second).windows_encoded == 10
    second.add("encode", 1.0, windows_encoded=1)
    second.add_failures([(2, "io")])
    assert heard(line, second).windows_encoded == 11
    third.add("encode", 1.0, windows_encoded=1)
    total = heard(line, third)
    assert (total.windows_encoded, total.busy_s["encode"]) == (12, 4.0)
    assert (total.unchanged_ids, total.failed_ids) == ({1}, {2: "io"})
    assert total.first_window_at_s == first.tally.first_window_at_s


def test_two_processes_never_have_the_same_origin() -> None:
    assert Progress().tally.origin != Progress().tally.origin

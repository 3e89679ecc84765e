"""The bytes of recordings. Small S3 objects are fetched in groups, the next group while this one is decoded."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from typing import BinaryIO

from embedding import storage
from embedding.schema.recordings import PendingRecording

# S3 objects up to this size are fetched whole and many at a time (a request costs 20–60 ms, whatever its size);
# longer objects are read as a stream of ranges.
WHOLE_OBJECT_BYTES = 32 << 20
FETCH_BYTES = 64 << 20
# Chunks beside the audio of a longer object are read in ranges of this size. Most recorders write a chunk before the
# audio, or one behind it.
CHUNK_RANGE_BYTES = 64 << 10
FETCH_OBJECTS = 32


@dataclass(frozen=True)
class Source:
    """The place where the bytes of a recording are.

    Attributes:
        file: Path or URI.
        content: The whole object, where it has been fetched.
        error: The error of the storage, where the object could not be fetched.
    """

    file: str
    content: bytes | None = None
    error: OSError | None = None

    def open(self) -> str | BinaryIO:
        """Return a local path, or a stream.

        Raises:
            OSError: The storage failed.
        """
        if self.error is not None:
            raise self.error
        if self.content is not None:
            return BytesIO(self.content)
        return storage.open_stream(self.file) if storage.is_s3(self.file) else self.file

    def open_for_chunks(self) -> BinaryIO:
        """Return a stream for the few chunks beside the audio, which leaves the stream of the audio where it is.

        Raises:
            OSError: The storage failed.
        """
        return storage.open_stream(self.file, CHUNK_RANGE_BYTES) if self.content is None else BytesIO(self.content)


def fetch(recordings: Sequence[PendingRecording]) -> Iterator[tuple[PendingRecording, Source]]:
    """Yield each recording with its source, in order."""
    groups = list(_groups(recordings))
    with ThreadPoolExecutor(1, thread_name_prefix="fetch") as pool:
        ahead = [pool.submit(_sources, group) for group in groups[:1]]
        for number, group in enumerate(groups):
            sources = ahead.pop().result()
            ahead += [pool.submit(_sources, following) for following in groups[number + 1 : number + 2]]
            for recording in group:
                # Popped, so that the bytes of an object are freed once its windows are cut.
                yield recording, sources.pop(0)


def _groups(recordings: Sequence[PendingRecording]) -> Iterator[list[PendingRecording]]:
    group: list[PendingRecording] = []
    n_bytes = 0
    for recording in recordings:
        if group and (n_bytes + recording.size > FETCH_BYTES or len(group) == FETCH_OBJECTS):
            yield group
            group, n_bytes = [], 0
        group.append(recording)
        n_bytes += max(recording.size, 0)
    if group:
        yield group


def _sources(group: Sequence[PendingRecording]) -> list[Source]:
    """Return a source for each recording of a group; small S3 objects are fetched all at once."""
    small = [each for each in group if storage.is_s3(each.file) and each.size <= WHOLE_OBJECT_BYTES]
    files = [each.file for each in small]
    try:
        answers = storage.read_many(files, [each.size for each in small]) if small else []
    except OSError as error:  # concerns all of them
        answers = [error] * len(files)
    fetched = dict(zip(files, answers, strict=True))
    return [_source(each.file, fetched.pop(each.file, None)) for each in group]


def _source(file: str, answer: bytes | OSError | None) -> Source:
    if isinstance(answer, OSError):
        return Source(file, error=answer)
    return Source(file, content=answer)

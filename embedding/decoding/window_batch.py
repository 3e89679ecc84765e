"""Windows on their way into a table of fixed size."""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embedding.decoding.audio import Recording
from embedding.schema.batches import AUDIO_HASH, RECORDER_FACTS, by_rate, hash_column, window_column, windows_schema
from embedding.schema.recordings import PendingRecording
from embedding.schema.targets import FIELD, TargetColumn
from embedding.schema.vectors import column
from embedding.schema.windows import WindowSpec

# Windows of one recording: ``[k, length]`` for each sample rate.
WindowsByRate = tuple[NDArray[np.float32], ...]


class WindowBatch:
    """A table that is being filled. Each window is copied once, into its place.

    Attributes:
        specs: Windows of each sample rate.
        size: Rows of a full table.
        n_rows: Rows so far.
    """

    def __init__(self, specs: Sequence[WindowSpec], size: int) -> None:
        """Start an empty batch.

        Args:
            specs: Windows of each target.
            size: Rows of a full table.
        """
        self.specs = by_rate(specs)
        self.size = size
        self._start()

    def _start(self) -> None:
        self.n_rows = 0
        self._windows = [np.empty((self.size, spec.length), dtype=np.float32) for spec in self.specs]
        self._columns: list[pa.Table] = []

    def add(
        self,
        pending: PendingRecording,
        recording: Recording,
        index: NDArray[np.int64],
        targets: TargetColumn,
        windows: WindowsByRate,
    ) -> Iterator[pa.Table]:
        """Add windows of a recording; yield each table that becomes full.

        Args:
            pending: The recording as listed.
            recording: The recording as decoded.
            index: Numbers of the windows, ``[k]``.
            targets: The targets that need each window.
            windows: Samples, ``[k, length]`` for each sample rate.
        """
        while len(index):
            n = min(len(index), self.size - self.n_rows)
            for held, added in zip(self._windows, windows, strict=True):
                held[self.n_rows : self.n_rows + n] = added[:n]
            self._columns.append(self._describe(pending, recording, index[:n], targets[:n]))
            self.n_rows += n
            index, targets, windows = index[n:], targets[n:], tuple(each[n:] for each in windows)
            if self.n_rows == self.size:
                yield self.take()

    def take(self) -> pa.Table:
        """Return the table as far as it is filled, and start the next one."""
        table = pa.concat_tables(self._columns)
        for spec, held in zip(self.specs, self._windows, strict=True):
            table = table.append_column(window_column(spec.rate_hz), column(held[: self.n_rows]))
        self._start()
        return table.cast(windows_schema(self.specs))

    def _describe(
        self, pending: PendingRecording, recording: Recording, index: NDArray[np.int64], targets: TargetColumn
    ) -> pa.Table:
        """Return the columns beside the samples."""
        n = len(index)
        start_s, end_s = self.specs[0].times(index, recording.duration_s)
        n_windows = min(spec.count(recording.n_samples(spec.rate_hz)) for spec in self.specs)
        hashes = {hash_column(spec.rate_hz): recording.audio_hashes.get(spec.rate_hz) for spec in self.specs}
        return pa.table(
            {
                "file": pa.repeat(pending.file, n),
                "file_id": np.full(n, pending.file_id),
                "window_index": index.astype(np.int32),
                "n_windows": np.full(n, n_windows, dtype=np.int32),
                "start_time": start_s,
                "end_time": end_s,
                "sample_rate": np.full(n, recording.sample_rate, dtype=np.int32),
                "channels": np.full(n, recording.channels, dtype=np.int32),
                "duration": np.full(n, recording.duration_s),
                FIELD.name: targets.as_array(),
                RECORDER_FACTS[0]: pa.repeat(recording.recorder_facts, n),
            }
            | {name: pa.repeat(pa.scalar(audio_hash, AUDIO_HASH[1]), n) for name, audio_hash in hashes.items()}
        )

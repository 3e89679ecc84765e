"""Events of decoding, in the order in which they happen: windows, and news of recordings."""

from dataclasses import dataclass

import pyarrow as pa

from embedding.schema.failures import Failure
from embedding.schema.targets import Targets


@dataclass(frozen=True)
class Opened:
    """A recording is about to be opened."""

    file: str


@dataclass(frozen=True)
class Failed:
    """A recording has no windows, or fewer than it should have. Comes before the last window of the recording.

    Attributes:
        failure: The row to store.
        targets: The targets that need the recording.
    """

    failure: Failure
    targets: Targets


@dataclass(frozen=True)
class Unchanged:
    """The audio of a recording is the audio that these targets have stored; they need no window of the recording."""

    file_id: int
    targets: Targets


@dataclass(frozen=True)
class Decoded:
    """A recording was decoded to its end.

    Attributes:
        duration_s: Seconds of audio in the recording.
        size: Bytes of the file, -1 where unknown.
    """

    duration_s: float
    size: int


@dataclass(frozen=True)
class NoMoreWindows:
    """A recording is finished without its last window: no further window of the recording follows."""


@dataclass(frozen=True)
class Windows:
    """A batch of windows: a table of ``batches.windows_schema``."""

    table: pa.Table


DecodingEvent = Opened | Failed | Unchanged | Decoded | NoMoreWindows | Windows

"""The job of a run: what every stage needs to know of it."""

from dataclasses import dataclass

from embedding.encoding.settings import Settings
from embedding.output.store import Store
from embedding.planning.shared_paths import NOTHING_LOCAL, SharedPaths
from embedding.schema.batches import by_rate
from embedding.schema.windows import WindowSpec


@dataclass(frozen=True)
class Target:
    """One model of a run, and where its vectors go."""

    settings: Settings
    store: Store


@dataclass(frozen=True)
class Job:
    """What every stage of a run needs to know; it travels to all of them."""

    targets: tuple[Target, ...]
    run_id: str
    batch_size: int  # windows
    shard_rows: int
    shared_paths: SharedPaths = NOTHING_LOCAL
    leg: int = 0  # of the run: its embedding may take several

    @property
    def windows(self) -> list[WindowSpec]:
        """Of each target."""
        return [target.settings.windows for target in self.targets]

    @property
    def window_bytes(self) -> int:
        """Of a window's samples in memory, at all rates."""
        return sum(spec.n_bytes for spec in by_rate(self.windows))

    @property
    def shard_prefix(self) -> str:
        """What the names of this leg's shards begin with; the write task's number follows."""
        return f"{self.run_id}-{self.leg}"

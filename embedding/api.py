"""The Python interface: the jobs as functions, and an output as an object.

Options, checks and errors are those of the commands. A Ray to which the process is connected already is used and left
running; otherwise each call that needs Ray starts one (some seconds) and ends it.
"""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from rich.console import Console

from embedding import storage
from embedding.cli.terminal import Terminal
from embedding.config import make_config, name_at_layer
from embedding.driver import embed as run_embed
from embedding.errors import RequestError
from embedding.lazy_tables import LazyTable, read_files, read_shards, run_query
from embedding.output.balance import Balance
from embedding.output.recordings_table import read_recordings
from embedding.output.shard_reading import list_shards, open_shard
from embedding.output.store import Store
from embedding.pooling.pool import pool as run_pool
from embedding.pooling.poolings import parse_poolings
from embedding.quiet import hide_hints_for_notebooks
from embedding.schema.vectors import matrix
from embedding.search.search import SearchOptions
from embedding.search.search import search as run_search
from embedding.where import choose_recordings

Path = str | PathLike[str]


def embed(
    *,
    input: Path | Sequence[Path],  # noqa: A002 — the name of the option
    output: Path,
    quiet: bool = False,
    **options: Any,
) -> "EmbedResult | None":
    """Embed recordings, as ``python -m jobs.embed`` does.

    Args:
        input: Directories, globs, files, ``s3://`` prefixes or manifests.
        output: Directory or ``s3://`` prefix of the embeddings.
        quiet: Print nothing.
        options: The other options of the command, with underscores: ``model="esp_aves2_sl_beats_all"``,
            ``window_s=5``, ``batch_size=64`` …; see ``embedding.config.EmbedConfig``.

    Returns:
        The result; None with ``dry_run=True``. Where more recordings failed than ``max_failure_rate`` allows, there is
        a warning.

    Raises:
        RequestError: The request makes no sense.
        RunError: The run could not go on, or was stopped. What is stored stays valid.
    """
    inputs = [input] if isinstance(input, str | PathLike) else list(input)
    config = make_config(_plain(options | {"input": inputs, "output": output}))
    if not config.verbose:
        hide_hints_for_notebooks()
    terminal = Terminal(Console(quiet=True)) if quiet else Terminal.on_stdout()
    if config.detect is None:
        balances = run_embed(config, terminal)
    else:
        from embedding.detecting.while_embedding import scoring_of

        balances = run_embed(config, terminal, make_on_shard=scoring_of(config))
    if balances is None:
        return None
    if config.detect is not None:
        from embedding.detecting.while_embedding import detect_after

        detect_after(config, terminal)
    for balance in balances:
        if shortfall := balance.shortfall(config.max_failure_rate):
            warnings.warn(shortfall, stacklevel=2)
    roots = [each.output for each in config.per_model()]
    return EmbedResult(
        dict(zip(config.model, balances, strict=True)),
        {model: open_output(root) for model, root in zip(config.model, roots, strict=True)},
    )


def _plain(value: Any) -> Any:
    """Return options with paths as text."""
    if isinstance(value, PathLike):
        return value.__fspath__()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


@dataclass(frozen=True)
class EmbedResult:
    """The result of a run.

    Attributes:
        balances: For each model, the recordings that were listed, embedded before, embedded and failed.
        outputs: For each model, its output.
    """

    balances: dict[str, Balance]
    outputs: dict[str, "Output"]

    @property
    def output(self) -> "Output":
        """The output of a run with one model."""
        if len(self.outputs) > 1:
            raise RequestError(f"this run has several outputs: use .outputs[model], with {', '.join(self.outputs)}")
        return next(iter(self.outputs.values()))

    @property
    def windows(self) -> int:
        """Number of stored windows of the listed recordings, all models together."""
        return sum(balance.windows_stored for balance in self.balances.values())

    @property
    def failures(self) -> pa.Table:
        """Recordings that failed: ``file``, ``stage``, ``kind``, ``message`` and more; with ``model`` for several."""
        tables = {model: output.failures for model, output in self.outputs.items()}
        if len(tables) == 1:
            return next(iter(tables.values()))
        named = [table.append_column("model", pa.repeat(model, len(table))) for model, table in tables.items()]
        return pa.concat_tables(named)

    @property
    def report(self) -> dict[str, Any]:
        """The content of ``report.json``; with several models, a dict of them by model."""
        reports = {model: output.report for model, output in self.outputs.items()}
        return reports if len(reports) > 1 else next(iter(reports.values()))


def open_output(output: Path) -> "Output":
    """Open an output of ``embed`` or ``python -m jobs.embed``.

    Args:
        output: Directory or ``s3://`` prefix.

    Raises:
        RequestError: There are no embeddings.
    """
    root = storage.normalise(_plain(output), "output")
    list_shards(root)
    return Output(root)


@dataclass(frozen=True)
class Output:
    """An output: its windows, vectors, failures and report.

    Attributes:
        root: Absolute path, or ``s3://`` prefix.
    """

    root: str

    @property
    def failures(self) -> pa.Table:
        """Recordings that failed, a row each."""
        return Store(self.root, "").read().failures

    @property
    def report(self) -> dict[str, Any]:
        """The content of ``report.json``."""
        return Store(self.root, "").read_json("report.json") or {}

    @property
    def recordings(self) -> pa.Table:
        """When and where each recording was made, a row each; docs/schema.md explains the columns."""
        return read_recordings(Store(self.root, ""))

    def windows(self, where: str | None = None, *, columns: Sequence[str] | None = None) -> LazyTable:
        """Return the stored windows, a row each; docs/schema.md explains the columns.

        Args:
            where: An SQL condition (DuckDB's) over these columns and those of ``recordings``:
                ``"hour(recorded_at) < 6 and site = 'A'"``.
            columns: Names of the columns to return; all of them by default.

        Raises:
            RequestError: There is no such column, or the condition makes no sense.
        """
        shards = list_shards(self.root)
        with open_shard(shards[0]) as first:
            schema = first.schema_arrow.remove_metadata()
        if unknown := [name for name in columns or () if name not in schema.names]:
            raise RequestError(f"columns: there is no {unknown[0]!r}; there are {', '.join(schema.names)}")
        if where is None:
            wanted = list(columns or schema.names)
            return LazyTable(pa.schema([schema.field(name) for name in wanted]), lambda: read_shards(shards, wanted))
        selected = ", ".join(f'"{name}"' for name in columns or schema.names)
        query = f"select {selected} from windows left join recordings using (file_id) where ({where}\n)"
        of_recordings = self.recordings
        shared = [name for name in schema.names if name != "file_id" and name in of_recordings.column_names]
        recordings = of_recordings.drop_columns(shared)
        checked = run_query(query, pa.RecordBatchReader.from_batches(schema, []), recordings.slice(0, 0))

        def read() -> Iterable[pa.RecordBatch]:
            windows = pa.RecordBatchReader.from_batches(schema, read_shards(shards, schema.names))
            return run_query(query, windows, recordings)

        return LazyTable(checked.schema, read)

    def vectors(self, file: Path, *, layer: str | None = None) -> NDArray[np.float32]:
        """Return the vectors of a recording, ``[windows, dim]``, in the order of its windows.

        Args:
            file: The recording as listed, or the end of its path: ``"a.wav"``, ``"site-1/a.wav"``.
            layer: An inner layer, of a run with ``layers``.

        Raises:
            RequestError: No recording has the name, or several have.
        """
        name = _plain(file)
        column = Store(self.root, "").column_of(layer)
        rows = []
        for batch in read_shards(list_shards(self.root), ["file", "window_index", column]):
            names = [each for each in batch["file"].unique().to_pylist() if each == name or each.endswith(f"/{name}")]
            rows.append(batch.filter(pc.field("file").isin(pa.array(names, pa.string()))))
        table = pa.Table.from_batches(rows).sort_by("window_index")
        files = table["file"].unique().to_pylist()
        if name in files:
            files, table = [name], table.filter(pc.field("file") == name)
        if len(files) != 1:
            found = f"no recording {name!r}" if not files else f"several recordings end in {name!r}, {files[0]} for one"
            raise RequestError(f"file: {self.root} holds {found}")
        return matrix(table[column])

    def search(
        self,
        *,
        clip: Path | None = None,
        like: str | None = None,
        at_s: float = 0.0,
        k: int = 10,
        layer: str | None = None,
        where: str | None = None,
    ) -> pa.Table:
        """Return the windows nearest to a sound, the nearest first: columns of windows and ``score``, the cosine.

        Args:
            clip: A sound file; it is encoded as the output was.
            like: In place of a clip, a recording of the output, as listed.
            at_s: Seconds from the start of ``like``.
            k: Number of windows.
            layer: An inner layer, of a run with ``layers``.
            where: An SQL condition over ``recordings``; windows of other recordings are no hits.

        Raises:
            RequestError: The clip cannot be read, or there is no such recording.
            RunError: The storage or the cluster failed.
        """
        if (clip is None) == (like is None):
            raise RequestError("search for either clip=FILE or like=FILE")
        uri = None if clip is None else storage.normalise(_plain(clip), "clip")
        return run_search(SearchOptions(self.root, uri, like, at_s, k, layer, where))

    def pool(
        self, pooling: str = "mean", *, layer: str | None = None, where: str | None = None, quiet: bool = False
    ) -> LazyTable:
        """Pool the windows of each recording, as ``python -m jobs.pool`` does, and return a row per recording.

        Args:
            pooling: ``mean``, ``max``, ``std``, joined with ``+``, or ``sequence``.
            layer: An inner layer, of a run with ``layers``.
            where: An SQL condition over ``recordings``; other recordings are neither pooled now nor returned.
            quiet: Print nothing.

        Raises:
            RequestError: The pooling or the layer makes no sense.
            RunError: The storage or the cluster failed.
        """
        terminal = Terminal(Console(quiet=True)) if quiet else Terminal.on_stdout()
        run_pool(self.root, parse_poolings(pooling), layer, terminal, where=where)
        chosen = choose_recordings(self.root, where)
        folder = storage.join(self.root, "recordings", name_at_layer(pooling, layer))
        files = list(storage.list_names(folder, ".parquet"))
        with storage.open_stream(files[0]) as stream:
            schema = pq.read_schema(stream).remove_metadata()

        def read() -> Iterator[pa.RecordBatch]:
            for batch in read_files(files):
                is_chosen = None if chosen is None else pa.array(np.isin(batch["file_id"].to_numpy(), chosen))
                yield batch if is_chosen is None else batch.filter(is_chosen)

        return LazyTable(schema, read)

    def detect(
        self,
        probe: Path | None = None,
        *,
        name: str | None = None,
        threshold: float | None = None,
        min_precision: float | None = None,
        top: int | None = None,
        merge_gap_s: float = 0.0,
        replace: bool = False,
        where: str | None = None,
        quiet: bool = False,
    ) -> LazyTable:
        """Find labels in every window, as ``python -m jobs.detect`` does, and return a row per detection.

        Args:
            probe: Name of a probe, or a .npz of weights; None for the labels that the model predicts.
            name: Name of the detections; None for that of the probe.
            threshold: Least probability of a detection, 0.5 by default.
            min_precision: In its place, the least precision on the windows of the probe's test.
            top: Keep so many detections of each label.
            merge_gap_s: Windows of a label become one detection over gaps of up to so many seconds.
            replace: Replace detections of other settings.
            where: An SQL condition over ``recordings``; windows of other recordings are not scored.
            quiet: Print nothing.

        Raises:
            RequestError: The probe or a threshold makes no sense, or the name has detections of other settings.
            RunError: The storage or the cluster failed.
        """
        from embedding.detecting.detect import detect as run_detect
        from embedding.detecting.plan import DetectOptions

        if threshold is not None and min_precision is not None:
            raise RequestError("min_precision: chooses the thresholds, and cannot be joined with threshold")
        options = DetectOptions(
            root=self.root,
            probe=None if probe is None else _plain(probe),
            name=name,
            threshold=threshold,
            min_precision=min_precision,
            top=top,
            merge_gap_s=merge_gap_s,
            replace=replace,
            where=where,
        )
        done = run_detect(options, Terminal(Console(quiet=True)) if quiet else Terminal.on_stdout())
        return self.detections(done.folder.rpartition("/")[2])

    def detections(self, name: str) -> LazyTable:
        """Return the detections of a name, a row each; docs/schema.md explains the columns.

        Args:
            name: Name of the detections: that of their probe, or ``predictions``.

        Raises:
            RequestError: There are no such detections.
        """
        from embedding.detecting.detection_files import detections_folder, read_detections
        from embedding.detecting.detections import STORED_DETECTIONS

        folder = detections_folder(self.root, name)
        if next(storage.list_names(folder, ".json"), None) is None:
            raise RequestError(f"name: {self.root} has no detections {name!r}: make them with detect()")

        def read() -> Iterator[pa.RecordBatch]:
            for table in read_detections(folder):
                yield from table.to_batches()

        return LazyTable(STORED_DETECTIONS, read)

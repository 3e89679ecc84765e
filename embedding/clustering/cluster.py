"""Clusters of all windows of an output.

1. read the settings; centres of an earlier run with the same settings are kept
2. find the centres: mini-batch k-means over all windows, or HDBSCAN in a sample
3. give every window its cluster, exactly once
4. count, find the windows nearest to each centre, and write _clusters.json

    OUTPUT/clusters/NAME/*.parquet       one row per window
    OUTPUT/clusters/NAME/_centres.npz    the centres
    OUTPUT/clusters/NAME/_clusters.json  sizes, examples, hours
"""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from embedding import storage
from embedding.cli.terminal import Terminal
from embedding.clustering.assignment import MEMBERS, Assignment
from embedding.clustering.centres import NOISE, Centres, find_by_hdbscan, find_by_kmeans
from embedding.config import RANDOM_CHECKPOINT
from embedding.derived.derive import Outcome, derive
from embedding.derived.derived_output import DERIVE_AGAIN, DerivedOutput
from embedding.derived.ranks import rank_in_groups
from embedding.errors import RequestError, storage_failure
from embedding.output.npz_files import BadArraysError, read_arrays
from embedding.output.recordings_table import RecordingsById, read_recordings
from embedding.output.shard_reading import list_shards, no_embeddings_error, open_shard, refuse_damage
from embedding.output.store import Store, encode_json
from embedding.overview.sample_choice import hash_windows, largest_sampled_hash
from embedding.schema.vectors import as_embedding, matrix

CLUSTERS_FOLDER = "clusters"
# Readers of a folder of Parquet pass over names that begin with an underscore.
CENTRES, SUMMARY = "_centres.npz", "_clusters.json"
# Windows of the sample: HDBSCAN compares each with each.
SAMPLE_WINDOWS = 20_000
N_EXAMPLES = 10
MAX_CLUSTERS_SHOWN = 40
MOST_BYTES = 1 << 30
_BATCH_ROWS = 8192


@dataclass(frozen=True)
class ClusterOptions:
    """Options of a clustering.

    Attributes:
        root: Directory or prefix of the output.
        name: Name of the clusters.
        method: One of METHODS.
        k: Number of clusters, for k-means.
        least: Least number of windows of the sample in a cluster, for HDBSCAN.
        layer: The inner layer whose vectors are compared; None for the output of the model.
        seed: Seed of the random numbers.
        replace: Replace clusters of other settings.
    """

    root: str
    name: str
    method: str
    k: int
    least: int
    layer: str | None
    seed: int
    replace: bool = False


def cluster(options: ClusterOptions, terminal: Terminal, *, verbose: bool = False) -> Outcome:
    """Find clusters, and give every window its own; windows that have one already keep it.

    Args:
        options: The options.
        terminal: Prints progress and sizes.
        verbose: Print the log lines of Ray.

    Raises:
        RequestError: There are too few windows, or the name has clusters of other settings.
        RunError: The storage or the cluster of machines failed; what is stored stays valid.
    """
    try:
        # 1. Read the settings.
        store = Store(options.root, "")
        settings = store.stored_settings()
        if settings is None:
            raise no_embeddings_error(options.root)
        column = store.column_of(options.layer)
        folder = storage.child(storage.join(options.root, CLUSTERS_FOLDER), options.name)
        asked = {
            "method": options.method,
            "clusters": options.k if options.method == "kmeans" else None,
            "least": options.least if options.method == "hdbscan" else None,
            "layer": options.layer,
            "seed": options.seed,
            "embeddings": settings,
        }
        stored = _read_centres(folder, asked, options)

        # 2. Find the centres.
        centres = stored or _find_centres(options, column, terminal)
        _refuse_other_length(centres, options.root, column, folder)

        # 3. Assign.
        digest = hashlib.blake2b(centres.vectors.tobytes() + centres.radius.tobytes(), digest_size=16).hexdigest()
        output = DerivedOutput(
            folder, json.dumps(asked | {"centres": digest}, sort_keys=True), "cluster", names_recordings=True
        )

        def keep_centres() -> None:
            if stored is None:
                before = _read_centres(folder, asked, options)
                if before is not None and (before.vectors.tobytes() != centres.vectors.tobytes()):
                    raise RequestError("--name: another run has found clusters meanwhile: run the same command again")
                _write_centres(folder, centres, asked)

        assignment = Assignment(centres, column)
        outcome = derive(options.root, output, assignment, terminal, on_claimed=keep_centres, verbose=verbose)

        # 4. Count.
        recordings = RecordingsById(read_recordings(store))
        summary = _summarise(folder, len(centres.vectors), recordings)
        storage.write_bytes(storage.join(folder, SUMMARY), encode_json({"of": asked, "clusters": summary}))
    except OSError as error:
        raise storage_failure(error) from error
    _print_sizes(summary, folder, terminal)
    if settings.get("checkpoint") == RANDOM_CHECKPOINT:
        terminal.warn("RANDOM WEIGHTS: these vectors mean nothing, and so do these clusters (--checkpoint random)")
    return outcome


def _read_centres(folder: str, asked: dict[str, Any], options: ClusterOptions) -> Centres | None:
    """Return the centres of an earlier run with the same settings; None if there are none.

    Raises:
        RequestError: There are centres of other settings, or the file is damaged.
    """
    uri = storage.join(folder, CENTRES)
    try:
        content = storage.read_bytes(uri, MOST_BYTES)
    except FileNotFoundError:
        return None
    try:
        arrays = read_arrays(content, ("settings", "vectors", "radius"))
        stored, vectors, radius = json.loads(str(arrays["settings"])), arrays["vectors"], arrays["radius"]
        is_right = vectors.dtype == radius.dtype == np.float32 and vectors.ndim == 2 and len(vectors)
        if not is_right or radius.shape != (len(vectors),) or not np.isfinite(vectors).all():
            raise BadArraysError("its arrays do not fit together")
        if not isinstance(stored, dict):
            raise BadArraysError("its settings are none")
    except (ValueError, RecursionError) as error:
        if options.replace:
            return None
        raise RequestError(f"--name: {uri} is damaged ({error}): add --replace") from error
    if stored != asked:
        if options.replace:
            return None
        differing = next((key for key in asked if stored.get(key) != asked[key]), "settings")
        raise RequestError(
            f"--name: {folder} holds clusters of other settings (another {differing}): add --replace, or choose "
            "another --name"
        )
    return None if options.replace else Centres(vectors, radius)


def _refuse_other_length(centres: Centres, root: str, column: str, folder: str) -> None:
    with open_shard(list_shards(root)[0], vectors=column) as shard:
        dim = shard.schema_arrow.field(column).type.list_size
    if centres.vectors.shape[1] != dim:
        raise RequestError(f"--name: the centres in {folder} are of vectors of another length: add --replace")


def _write_centres(folder: str, centres: Centres, asked: dict[str, Any]) -> None:
    sink = io.BytesIO()
    settings = np.array(json.dumps(asked))
    np.savez(sink, vectors=centres.vectors, radius=centres.radius, settings=settings)
    storage.write_bytes(storage.join(folder, CENTRES), sink.getvalue())


def _find_centres(options: ClusterOptions, column: str, terminal: Terminal) -> Centres:
    """Return the centres.

    Raises:
        RequestError: There are too few windows, or no dense region.
    """
    shards = list_shards(options.root)
    sample = _read_sample(options, shards, column)
    if options.method == "kmeans":
        if len(sample) < options.k:
            raise RequestError(
                f"--clusters: {options.k:,} clusters need as many windows, and there are {len(sample):,} to begin with"
            )
        terminal.say(f"mini-batch k-means with {options.k:,} clusters over all windows")
        return find_by_kmeans(lambda: _vectors(shards, column), sample, options.k, options.seed)
    if len(sample) < options.least:
        raise RequestError(f"--least: {options.least:,} windows make a cluster, and there are {len(sample):,}")
    terminal.say(f"HDBSCAN in a sample of {len(sample):,} windows")
    centres = find_by_hdbscan(sample, options.least, options.seed)
    if not len(centres.vectors):
        raise RequestError("--least: no dense region was found: try a smaller number, or --method kmeans")
    return centres


def _read_sample(options: ClusterOptions, shards: list[str], column: str) -> NDArray[np.float32]:
    """Return the vectors of a sample in which every window has the same chance, ``[windows, dim]``."""
    largest = largest_sampled_hash(Store(options.root, "").read().window_ranges, SAMPLE_WINDOWS, options.seed)
    parts, hashes = [], []
    for uri in shards:
        with open_shard(uri, vectors=column) as shard:
            for batch in shard.iter_batches(_BATCH_ROWS, columns=["file_id", "window_index", column]):
                rows = pa.table(batch)
                hashed = hash_windows(rows["file_id"].to_numpy(), rows["window_index"].to_numpy(), options.seed)
                is_sampled = hashed <= largest
                hashes.append(hashed[is_sampled])
                parts.append(matrix(as_embedding(rows, column)[rows.column_names.index(column)])[is_sampled])
    order = np.argsort(np.concatenate(hashes), kind="stable")  # does not depend on the shards
    vectors = np.concatenate(parts)[order]
    return vectors[np.isfinite(vectors).all(axis=1)]


def _vectors(shards: list[str], column: str) -> Iterator[NDArray[np.float32]]:
    for uri in shards:
        with open_shard(uri, vectors=column) as shard:
            for batch in shard.iter_batches(_BATCH_ROWS, columns=[column], use_threads=False):
                vectors = matrix(pa.chunked_array([batch[column]]))
                yield vectors[np.isfinite(vectors).all(axis=1)]


def _summarise(folder: str, n_clusters: int, when_and_where: RecordingsById) -> list[dict[str, Any]]:
    """Return for each cluster its size, recordings, windows by hour and site, and the windows nearest to its centre.

    Args:
        folder: The folder of the clusters.
        n_clusters: Number of clusters.
        when_and_where: The table of recordings.
    """
    sizes, hours, sites = Counter[int](), Counter[tuple[int, int]](), Counter[tuple[int, str]]()
    recordings: Counter[int] = Counter()
    nearest = MEMBERS.empty_table()
    for uri in storage.list_names(folder, ".parquet"):
        with refuse_damage(uri, DERIVE_AGAIN), storage.open_stream(uri) as stream:
            rows = pq.read_table(stream, columns=MEMBERS.names, use_threads=False).replace_schema_metadata(None)
        sizes.update(
            dict(zip(*(part.tolist() for part in np.unique(rows["cluster"], return_counts=True)), strict=True))
        )
        pairs = rows.group_by(["file_id", "cluster"]).aggregate([([], "count_all")])
        facts = when_and_where.when_and_where(pairs["file_id"].to_numpy())
        for name in ("recorded_at", "site"):
            pairs = pairs.append_column(name, facts[name])
        for pair in pairs.to_pylist():
            recordings[pair["cluster"]] += 1
            if pair["recorded_at"] is not None:
                hours[pair["cluster"], pair["recorded_at"].hour] += pair["count_all"]
            if pair["site"] is not None:
                sites[pair["cluster"], pair["site"]] += pair["count_all"]
        order = [
            ("cluster", "ascending"),
            ("distance", "ascending"),
            ("file", "ascending"),
            ("window_index", "ascending"),
        ]
        together = pa.concat_tables([nearest, rows]).sort_by(order)  # type: ignore[arg-type]
        nearest = together.filter(pa.array(rank_in_groups(together["cluster"].to_numpy()) < N_EXAMPLES))
    examples: dict[int, list[dict[str, Any]]] = {}
    for row in nearest.to_pylist():
        example = {name: row[name] for name in ("file", "start_time", "end_time", "distance")}
        examples.setdefault(row["cluster"], []).append(example)
    return [
        {
            "cluster": number,
            "windows": sizes[number],
            "recordings": recordings[number],
            "by_hour": [hours[number, hour] for hour in range(24)],
            "by_site": {site: n for (cluster, site), n in sorted(sites.items()) if cluster == number},
            "examples": examples.get(number, []),
        }
        for number in range(NOISE, n_clusters)
        if number != NOISE or sizes[NOISE]
    ]


def _print_sizes(summary: list[dict[str, Any]], folder: str, terminal: Terminal) -> None:
    terminal.say(f"{'cluster':>8}{'windows':>12}{'recordings':>12}  nearest to the centre")
    ordered = sorted(summary, key=lambda row: -row["windows"])
    for row in ordered[:MAX_CLUSTERS_SHOWN]:
        name = "none" if row["cluster"] == NOISE else str(row["cluster"])
        first = row["examples"][0] if row["examples"] and row["cluster"] != NOISE else None
        where = f"  {first['file']} at {first['start_time']:g} s" if first else ""
        terminal.say(f"{name:>8}{row['windows']:>12,}{row['recordings']:>12,}{where}")
    if len(ordered) > MAX_CLUSTERS_SHOWN:
        terminal.say(f"… and {len(ordered) - MAX_CLUSTERS_SHOWN:,} more in {SUMMARY}")
    terminal.say(f"  {folder}: *.parquet, {CENTRES}, {SUMMARY}")

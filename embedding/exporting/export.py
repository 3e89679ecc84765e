"""The whole flow: rows, some thousand at a time, into a folder that appears when it is complete."""

import json
import time
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module, metadata
from pathlib import Path

import pyarrow as pa

from embedding import storage
from embedding.cli.terminal import Terminal
from embedding.errors import RequestError, RunError, storage_failure
from embedding.exporting.destination import NAME, refuse_others, taking
from embedding.exporting.exported_rows import Rows, Wanted, rows_of
from embedding.output import run_report
from embedding.output.store import Store
from embedding.redact import redact_all
from embedding.text import duration, plural, size


def export(wanted: Wanted, to: str, destination: Path, terminal: Terminal) -> None:
    """Export windows or recordings to a format; say how to read it.

    Raises:
        RequestError: there are none, something else is in the way, or a package is missing.
        RunError: rows are there twice, or the storage failed.
    """
    for part in ("embeddings", "recordings"):
        folder = storage.join(wanted.root, part)
        if str(destination) == folder or str(destination).startswith(f"{folder}/"):
            raise RequestError(f"FOLDER: {destination} lies among what is exported: choose another one")
    refuse_others(destination, to)
    tool = import_module(f"embedding.exporting.{to}")  # torch alone takes seconds
    began_s = time.monotonic()
    try:
        rows = rows_of(wanted)
        _check(Store(wanted.root, ""), rows, terminal)
        terminal.say(f"{plural(rows.n, rows.noun)} of {rows.dim:,} numbers")
        with taking(destination, to) as folder, terminal.counting(f"{rows.noun}s", rows.n) as count:
            tool.write(rows, _counted(rows.batches(), count), folder)
            _describe(folder, to, wanted, rows)
    except OSError as error:
        raise storage_failure(error) from error
    n_bytes = sum(path.stat().st_size for path in destination.rglob("*") if path.is_file())
    terminal.say(f"done in {duration(time.monotonic() - began_s)}: {size(n_bytes)} in {destination}")
    terminal.say(f"  {tool.read(rows, destination)}")


def _check(store: Store, rows: Rows, terminal: Terminal) -> None:
    if not run_report.is_settled(store):
        terminal.warn("a run of jobs.embed is going on, or died: rows may be missing, or be of former versions")
    if rows.noun == "window":
        n_repeated = int(store.read().recordings().n_repeated.sum())
        if n_repeated:
            repeated = plural(n_repeated, "row")
            raise RunError(f"{store.root} has {repeated} too many: run jobs.embed again, which mends that")


def _counted(batches: Iterable[pa.Table], count: Callable[[int], None]) -> Iterator[pa.Table]:
    for batch in batches:
        yield batch
        count(len(batch))


def _describe(folder: Path, to: str, wanted: Wanted, rows: Rows) -> None:
    content = {
        "format": to,
        "of": wanted.root,
        "layer": wanted.layer,
        "rows": rows.n,
        "dimensions": rows.dim,
        "settings": rows.settings,
        "versions": {"avex-batch": metadata.version("avex-batch")},
        "names": sorted([NAME, *(path.name for path in folder.iterdir())]),
    }
    (folder / NAME).write_text(json.dumps(redact_all(content), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

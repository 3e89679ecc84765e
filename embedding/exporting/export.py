"""Export of an output to the format of another tool.

1. check the folder of the export
2. find the rows, and check that none is repeated
3. write the rows into a new folder, in batches, with a description; it appears when it is complete
4. print how to read the export
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module, metadata
from pathlib import Path

import pyarrow as pa

from embedding import storage
from embedding.cli.terminal import Terminal
from embedding.errors import RequestError, RunError, storage_failure
from embedding.exporting.destination import RECORD_NAME, refuse_other_content, replace_folder
from embedding.exporting.exported_rows import ExportedRows, ExportOptions, find_rows
from embedding.output import run_report
from embedding.output.store import Store
from embedding.redact import redact_all
from embedding.text import duration, plural, size


def export(options: ExportOptions, to: str, destination: Path, terminal: Terminal) -> None:
    """Export windows or recordings, and print how to read the export.

    Args:
        options: The rows to export.
        to: The format, a module of this package.
        destination: The folder of the export.
        terminal: Prints progress.

    Raises:
        RequestError: There are no rows, a file is damaged, the folder has other content, or a package is missing.
        RunError: Rows are repeated, or the storage failed.
    """
    # 1. Check the folder.
    for part in ("embeddings", "recordings"):
        folder = storage.join(options.root, part)
        if str(destination) == folder or str(destination).startswith(f"{folder}/"):
            raise RequestError(f"FOLDER: {destination} lies in the folder that is exported: choose another folder")
    refuse_other_content(destination, to)
    tool = import_module(f"embedding.exporting.{to}")  # here, because torch alone takes seconds
    start_s = time.monotonic()
    try:
        # 2. Find the rows.
        rows = find_rows(options)
        _refuse_repeated_rows(Store(options.root, ""), rows, terminal)
        terminal.say(f"{plural(rows.n, rows.noun)} of {rows.dim:,} numbers")

        # 3. Write them.
        with replace_folder(destination, to) as folder, terminal.counting(f"{rows.noun}s", rows.n) as count:
            tool.write(rows, _counted(rows.batches(), count), folder)
            _write_record(folder, to, options, rows)
    except OSError as error:
        raise storage_failure(error) from error

    # 4. Print how to read them.
    n_bytes = sum(path.stat().st_size for path in destination.rglob("*") if path.is_file())
    terminal.say(f"done in {duration(time.monotonic() - start_s)}: {size(n_bytes)} in {destination}")
    terminal.say(f"  {tool.reading_line(rows, destination)}")


def _refuse_repeated_rows(store: Store, rows: ExportedRows, terminal: Terminal) -> None:
    """Refuse repeated windows; warn of a run that may change rows."""
    if not run_report.is_settled(store):
        terminal.warn("a run of jobs.embed is in progress or has died: rows may be missing or outdated")
    if rows.noun == "window":
        n_repeated = int(store.read().recordings().n_repeated.sum())
        if n_repeated:
            repeated = plural(n_repeated, "repeated row")
            raise RunError(f"{store.root} has {repeated}: run jobs.embed again, which repairs that")


def _counted(batches: Iterable[pa.Table], count: Callable[[int], None]) -> Iterator[pa.Table]:
    for batch in batches:
        yield batch
        count(len(batch))


def _write_record(folder: Path, to: str, options: ExportOptions, rows: ExportedRows) -> None:
    """Write the description of the export."""
    content = {
        "format": to,
        "of": options.root,
        "layer": options.layer,
        "where": options.where,
        "rows": rows.n,
        "dimensions": rows.dim,
        "settings": rows.settings,
        "versions": {"avex-batch": metadata.version("avex-batch")},
        "names": sorted([RECORD_NAME, *(path.name for path in folder.iterdir())]),
    }
    text = json.dumps(redact_all(content), indent=2, ensure_ascii=False) + "\n"
    (folder / RECORD_NAME).write_text(text, encoding="utf-8")

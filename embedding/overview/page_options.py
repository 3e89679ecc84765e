"""Options of the page and its PNG files: checked before the work, and used to write them after it."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from embedding import extras, storage
from embedding.cli.terminal import Terminal
from embedding.errors import RequestError, storage_failure
from embedding.listing.manifests import MANIFEST_SUFFIXES, read_manifest
from embedding.output import run_report
from embedding.output.consistency import ConsistencyReport
from embedding.output.inventory import Inventory
from embedding.output.store import Store
from embedding.overview.manifest_columns import Columns
from embedding.text import size

# What the extra `report` brings.
NEEDED = ("jinja2", "kaleido", "plotly", "sklearn", "umap")


@dataclass(frozen=True)
class Wanted:
    """Places of the page and of its PNG files, and their sources besides the output."""

    html: str | None  # absolute path or s3:// URI
    png: Path | None  # a folder
    manifest: tuple[str, pa.Table] | None  # its name, and all of it
    n_drawn: int  # windows

    @classmethod
    def of(cls, html: str | None, png: str | None, manifest: str | None, n_drawn: int) -> "Wanted":
        """Options as they were given.

        Raises:
            RequestError: a package or the browser is missing, or something cannot be written or read.
        """
        extras.refuse_missing(NEEDED, "report", "--png" if html is None else "--html")
        if png is not None:
            from embedding.overview.png_files import refuse_without_browser  # with Plotly, which takes a moment

            refuse_without_browser()
        table = None
        if manifest is not None:
            uri = storage.normalise(manifest, "--manifest")
            table = (uri, read_manifest(uri, "--manifest"))
        return cls(
            None if html is None else _page(storage.normalise(html, "--html")),
            None if png is None else _folder(_local(png), "--png"),
            table,
            n_drawn,
        )

    def publish(self, store: Store, inventory: Inventory, audit: ConsistencyReport, terminal: Terminal) -> None:
        """Look at the output, and write.

        Raises:
            RunError: a shard is damaged, the storage or the browser failed.
        """
        from embedding.overview.build import look  # scikit-learn takes a second

        run, report = store.read_json("run.json") or {}, store.read_json(run_report.NAME) or {}
        columns, named, warnings = self._columns(run)
        with terminal.counting("shards", len(inventory.shards)) as count:
            seen = look(inventory, columns, self.n_drawn, count)
        if named and len(seen.sums.drawn) and not columns.names_any(seen.sums.drawn["file"]):
            warnings.append(f"{' and '.join(named)} has a row for none of the recordings that were drawn: other paths?")
        for warning in warnings:
            terminal.warn(warning)
        try:
            if self.html is not None:
                from embedding.overview.html_page import page
                from embedding.overview.page_text import Output

                settings = run.get("settings") or store.stored_settings() or {}
                balance = report.get("recordings", {})
                output = Output(store.root, audit, settings, balance, inventory.failures, named, warnings)
                content = page(output, seen).encode()
                storage.write_bytes(self.html, content)
                terminal.say(f"page: {self.html} ({size(len(content))})")
            if self.png is not None:
                from embedding.overview.png_files import write_png

                files = write_png(seen, self.png)
                terminal.say(f"{len(files)} pictures in {self.png}")
        except OSError as error:
            raise storage_failure(error) from error

    def _columns(self, run: dict[str, Any]) -> tuple[Columns, list[str], list[str]]:
        """Read the given manifest, otherwise the manifests of the input; return columns, names and warnings."""
        if self.manifest is not None:
            name, table = self.manifest
            return Columns.of([table]), [name], []
        tables, named, warnings = [], [], []
        for uri in run.get("options", {}).get("input", []):
            if uri.lower().endswith(MANIFEST_SUFFIXES):
                try:
                    tables.append(read_manifest(storage.normalise(uri, "--input"), "--input"))
                    named.append(uri)
                except RequestError:  # it was the run's; the report is of the output
                    warnings.append(f"{uri}, which was the input, cannot be read now: --manifest says where it is")
        return Columns.of(tables), named, warnings


def _local(png: str) -> Path:
    uri = storage.normalise(png, "--png")
    if storage.is_s3(uri):
        raise RequestError(f"--png: {uri} is no folder of this machine, where the browser could write")
    return Path(uri)


def _page(uri: str) -> str:
    if storage.is_s3(uri):
        return uri
    if Path(uri).is_dir():
        raise RequestError(f"--html: {uri} is a folder; name a file in it")
    return storage.join(str(_folder(Path(uri).parent, "--html")), Path(uri).name)


def _folder(path: Path, option: str) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"{option}: cannot make {path}: {error.strerror}") from error
    if not os.access(path, os.W_OK):
        raise RequestError(f"{option}: cannot write into {path}")
    return path

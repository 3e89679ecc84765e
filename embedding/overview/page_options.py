"""Options of the page and its PNG files: checked before the work, and used to write them after it."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from embedding import extras, storage
from embedding.cli.terminal import Terminal
from embedding.errors import RequestError, storage_failure
from embedding.listing.manifest_columns import ManifestColumns
from embedding.listing.manifests import MANIFEST_SUFFIXES, read_manifest
from embedding.output import run_report
from embedding.output.consistency import ConsistencyReport
from embedding.output.inventory import Inventory
from embedding.output.recordings_table import read_recordings
from embedding.output.store import Store
from embedding.overview.stored_results import StoredResults
from embedding.text import size
from embedding.where import choose_rows

# Packages of the extra `report`.
PACKAGES = ("jinja2", "kaleido", "plotly", "sklearn", "umap")


@dataclass(frozen=True)
class ReportOptions:
    """Options of a page and of its PNG files.

    Attributes:
        html: The file of the page, an absolute path or s3:// URI; None: no page.
        png: The folder of the PNG files; None: no PNG files.
        manifest: Name and rows of a manifest; None: the manifests that were inputs of the run.
        sample_size: Windows in the sample.
        where: An SQL condition over ``recordings.parquet``; other recordings are not shown.
    """

    html: str | None
    png: Path | None
    manifest: tuple[str, pa.Table] | None
    sample_size: int
    where: str | None = None

    @classmethod
    def of(
        cls, html: str | None, png: str | None, manifest: str | None, sample_size: int, where: str | None = None
    ) -> "ReportOptions":
        """Check the values of the options on the command line, and read the manifest.

        Args:
            html: Value of ``--html``.
            png: Value of ``--png``.
            manifest: Value of ``--manifest``.
            sample_size: Value of ``--sample``.
            where: Value of ``--where``.

        Raises:
            RequestError: A package or the browser is missing, or a file or folder cannot be written or read.
        """
        extras.refuse_missing(PACKAGES, "report", "--png" if html is None else "--html")
        if where is not None:
            extras.refuse_missing(("duckdb",), "sql", "--where")
        if png is not None:
            from embedding.overview.png_files import refuse_without_browser  # imports Plotly, which is slow

            refuse_without_browser()
        named_table = None
        if manifest is not None:
            uri = storage.normalise(manifest, "--manifest")
            named_table = (uri, read_manifest(uri, "--manifest"))
        return cls(
            None if html is None else _check_page(storage.normalise(html, "--html")),
            None if png is None else _make_folder(_check_local(png), "--png"),
            named_table,
            sample_size,
            where,
        )

    def write(self, store: Store, inventory: Inventory, consistency: ConsistencyReport, terminal: Terminal) -> None:
        """Build the overview of an output, and write the page and the PNG files.

        Args:
            store: The output.
            inventory: The inventory of the output.
            consistency: Counts of the output, its runs, and disagreements between its files.
            terminal: Shows progress, warnings and the names of the files.

        Raises:
            RequestError: The condition makes no sense.
            RunError: A shard is damaged, the storage or the browser failed.
        """
        from embedding.overview.build import build_overview  # imports scikit-learn, which takes a second

        run, report = store.read_json("run.json") or {}, store.read_json(run_report.NAME) or {}
        columns, manifests, warnings = self._read_columns(run)
        try:
            recordings = read_recordings(store)
            chosen = None if self.where is None else choose_rows(recordings, store.root, self.where)
            results = StoredResults.read(store.root)
        except OSError as error:
            raise storage_failure(error) from error
        columns = columns.with_starts(recordings)
        warnings += results.warnings
        if chosen is not None:
            warnings.append(f"only recordings where {self.where}: {len(chosen):,} of {len(recordings):,}")
        with terminal.counting("shards", len(inventory.shards)) as count:
            overview = build_overview(inventory, columns, self.sample_size, count, chosen)
        sample = overview.sums.sample
        if manifests and len(sample) and not columns.has_row_for_any(sample["file"]):
            verb = "has" if len(manifests) == 1 else "have"
            warnings.append(f"{' and '.join(manifests)} {verb} no row for any recording in the sample; check the paths")
        for warning in warnings:
            terminal.warn(warning)
        try:
            if self.html is not None:
                from embedding.overview.html_page import render_page
                from embedding.overview.page_text import OutputFacts

                settings = run.get("settings") or store.stored_settings() or {}
                balance = report.get("recordings", {})
                facts = OutputFacts(
                    store.root,
                    consistency,
                    settings,
                    run.get("agreement"),
                    balance,
                    inventory.failures,
                    manifests,
                    warnings,
                    results,
                )
                content = render_page(facts, overview).encode()
                storage.write_bytes(self.html, content)
                terminal.say(f"page: {self.html} ({size(len(content))})")
            if self.png is not None:
                from embedding.overview.png_files import write_png

                files = write_png(overview, results, self.png)
                terminal.say(f"{len(files)} pictures in {self.png}")
        except OSError as error:
            raise storage_failure(error) from error

    def _read_columns(self, run: dict[str, Any]) -> tuple[ManifestColumns, list[str], list[str]]:
        """Read the given manifest, otherwise the manifests of the input; return columns, names and warnings."""
        if self.manifest is not None:
            name, table = self.manifest
            return ManifestColumns.of([table]), [name], []
        tables, names, warnings = [], [], []
        for uri in run.get("options", {}).get("input", []):
            if uri.lower().endswith(MANIFEST_SUFFIXES):
                try:
                    tables.append(read_manifest(storage.normalise(uri, "--input"), "--input"))
                    names.append(uri)
                except RequestError:  # the run needed the manifest; the page can do without it
                    warnings.append(
                        f"{uri} was an input of the run, and cannot be read now; use --manifest if it moved"
                    )
        return ManifestColumns.of(tables), names, warnings


def _check_local(png: str) -> Path:
    uri = storage.normalise(png, "--png")
    if storage.is_s3(uri):
        raise RequestError(f"--png: {uri} is not a folder of this machine; the browser can write only there")
    return Path(uri)


def _check_page(uri: str) -> str:
    if storage.is_s3(uri):
        return uri
    if Path(uri).is_dir():
        raise RequestError(f"--html: {uri} is a folder; name a file in it")
    return storage.join(str(_make_folder(Path(uri).parent, "--html")), Path(uri).name)


def _make_folder(path: Path, option: str) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"{option}: cannot make {path}: {error.strerror}") from error
    if not os.access(path, os.W_OK):
        raise RequestError(f"{option}: cannot write into {path}")
    return path

"""The state of an output, counted from its shards alone, and where its own report differs from them."""

from dataclasses import asdict, dataclass
from typing import Any

from embedding import storage
from embedding.errors import RequestError
from embedding.output import run_report
from embedding.output.backlog import failures_by_kind
from embedding.output.claim import NAME as CLAIM
from embedding.output.claim import ClaimHolder, read_holder
from embedding.output.inventory import Inventory, map_in_threads
from embedding.output.shard_reading import no_embeddings_error
from embedding.output.store import Store
from embedding.text import plural


@dataclass(frozen=True)
class ConsistencyReport:
    """The state of an output.

    Attributes:
        output: Counts from the shards, see ``Inventory.totals``.
        failures: For each kind, the number of recordings and examples.
        runs: The history of runs in report.json.
        writer: The run that writes now; None where no run does.
        disagreements: Differences between the shards and what run.json and report.json say, a sentence each.
    """

    output: dict[str, float]
    failures: dict[str, dict[str, Any]]
    runs: list[dict[str, Any]]
    writer: ClaimHolder | None
    disagreements: list[str]

    def as_json(self) -> dict[str, Any]:
        """Return the report for ``jobs.report --json``."""
        return asdict(self)


def check_consistency(store: Store, inventory: Inventory) -> ConsistencyReport:
    """Compare an output with its run.json and report.json; write a report.json where there is none.

    Args:
        store: The output.
        inventory: What the output holds.

    Raises:
        RequestError: There is no output, or it cannot be read.
    """
    root = store.root
    report, run = store.read_json(run_report.NAME), store.read_json("run.json")
    if run is None and report is None and not inventory.shards and not len(inventory.failures):
        raise no_embeddings_error(root)
    totals = inventory.totals()
    writer = _read_writer(storage.join(root, CLAIM))
    disagreements = []
    if writer is None:  # while a run goes on, its report is a little behind the shards
        disagreements += _compare_report(report, totals)
    disagreements += _compare_settings(store, inventory, run) + _compare_windows(totals, is_running=writer is not None)
    failures = failures_by_kind(inventory.failures)
    if report is None and writer is None:
        try:
            store.write_json(run_report.NAME, {"state": "rebuilt", "failures": failures, "output": totals, "runs": []})
        except OSError as error:  # the user may look at an output without the right to write to it
            disagreements.append(f"report.json cannot be written: {error.strerror or error}")
    return ConsistencyReport(totals, failures, (report or {}).get("runs", []), writer, disagreements)


def _read_writer(uri: str) -> ClaimHolder | None:
    """Return the holder of the claim, unless it is known to be dead."""
    try:
        holder = read_holder(uri)
    except OSError as error:
        raise RequestError(f"--output: cannot read {uri}: {error.strerror or error}") from error
    return None if holder is None or holder.is_dead() else holder


def _compare_report(report: dict[str, Any] | None, totals: dict[str, float]) -> list[str]:
    if report is None:
        return ["there was no report.json"]
    if report.get("state") == "running":
        return ["the last run did not end (killed?): run the same command again to go on"]
    reported = report.get("output", {})
    return [
        f"report.json says {reported.get(name)} {name}, the shards say {count}"
        for name, count in totals.items()
        if reported.get(name) != count
    ]


def _compare_settings(store: Store, inventory: Inventory, run: dict[str, Any] | None) -> list[str]:
    of_shards = list(map_in_threads(store.examine_shard, [(uri,) for uri in inventory.shards]))
    if run is None:
        return ["there is no run.json"]
    differing = [
        uri.rpartition("/")[2]
        for uri, settings in zip(inventory.shards, of_shards, strict=True)
        if settings != run["settings"]
    ]
    if not differing:
        return []
    written = f"{plural(len(differing), 'shard')} {'was' if len(differing) == 1 else 'were'} written"
    return [f"{written} with other settings than run.json says, for example {differing[0]}"]


def _compare_windows(totals: dict[str, float], *, is_running: bool) -> list[str]:
    sentences = []
    if totals["repeated"]:
        sentences.append(f"{plural(int(totals['repeated']), 'repeated row')}: removed by the next run")
    if totals["incomplete"] and not is_running:
        half_done = plural(int(totals["incomplete"]), "half-done recording")
        sentences.append(f"{half_done}: run the same command again to go on")
    return sentences

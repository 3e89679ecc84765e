"""What an output holds, from its shards alone, and where its own report says otherwise."""

from dataclasses import asdict, dataclass
from typing import Any

from embedding import storage
from embedding.errors import RequestError
from embedding.output import run_report
from embedding.output.backlog import failures_by_kind
from embedding.output.claim import NAME as CLAIM
from embedding.output.claim import Owner, read_owner
from embedding.output.inventory import Inventory, map_in_threads
from embedding.output.store import Store, no_embeddings
from embedding.text import plural


@dataclass(frozen=True)
class Audit:
    """An output as it is."""

    output: dict[str, float]  # Inventory.totals
    failures: dict[str, dict[str, Any]]
    runs: list[dict[str, Any]]  # as report.json tells them
    writer: Owner | None  # a run that goes on
    disagreements: list[str]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def audit(store: Store, inventory: Inventory) -> Audit:
    """Compare what is ``stored`` with what the output says of itself; where it has no report.json, write one.

    Raises:
        RequestError: there is no output, or it cannot be read.
    """
    root = store.root
    report, run = store.read_json(run_report.NAME), store.read_json("run.json")
    if run is None and report is None and not inventory.shards and not len(inventory.failures):
        raise no_embeddings(root)
    totals = inventory.totals()
    writer = _writer(storage.join(root, CLAIM))
    if writer is not None and writer.is_dead():
        writer = None
    disagreements = []
    if writer is None:  # while a run goes on, its report is a little behind
        disagreements += _of_report(report, totals)
    disagreements += _of_settings(store, inventory, run) + _of_windows(totals, going_on=writer is not None)
    failures = failures_by_kind(inventory.failures)
    if report is None and writer is None:
        try:
            store.write_json(run_report.NAME, {"state": "rebuilt", "failures": failures, "output": totals, "runs": []})
        except OSError as error:  # somebody else's output can be looked at, too
            disagreements.append(f"report.json cannot be written: {error.strerror or error}")
    return Audit(totals, failures, (report or {}).get("runs", []), writer, disagreements)


def _writer(uri: str) -> Owner | None:
    try:
        return read_owner(uri)
    except OSError as error:
        raise RequestError(f"--output: cannot read {uri}: {error.strerror or error}") from error


def _of_report(report: dict[str, Any] | None, totals: dict[str, float]) -> list[str]:
    if report is None:
        return ["there was no report.json"]
    if report.get("state") == "running":
        return ["the last run did not come to its end (killed?): the same command again goes on from here"]
    said = report.get("output", {})
    return [
        f"report.json says {said.get(name)} {name}, the shards say {found}"
        for name, found in totals.items()
        if said.get(name) != found
    ]


def _of_settings(store: Store, inventory: Inventory, run: dict[str, Any] | None) -> list[str]:
    of_shards = list(map_in_threads(store.examine_shard, [(uri,) for uri in inventory.shards]))
    if run is None:
        return ["there is no run.json"]
    others = [
        uri.rpartition("/")[2]
        for uri, settings in zip(inventory.shards, of_shards, strict=True)
        if settings != run["settings"]
    ]
    if not others:
        return []
    written = f"{plural(len(others), 'shard')} {'was' if len(others) == 1 else 'were'} written"
    return [f"{written} with other settings than run.json says, {others[0]} for one"]


def _of_windows(totals: dict[str, float], *, going_on: bool) -> list[str]:
    found = []
    if totals["repeated"]:
        found.append(f"{plural(int(totals['repeated']), 'row')} too many: the next run mends that")
    if totals["incomplete"] and not going_on:
        half_done = plural(int(totals["incomplete"]), "half-done recording")
        found.append(f"{half_done}: the same command again goes on from here")
    return found

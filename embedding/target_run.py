"""The output of one target while a run holds it: compare, adopt unchanged recordings, repair, balance."""

from contextlib import suppress

import numpy as np

from embedding.cli.terminal import Terminal
from embedding.config import EmbedConfig
from embedding.job import Target
from embedding.listing.manifest_columns import ManifestColumns
from embedding.output.balance import Balance
from embedding.output.claim import Claim
from embedding.output.inventory import ParallelMap
from embedding.output.recordings_table import (
    RecordingsTable,
    is_stored,
    read_stored,
    update_recordings,
    write_recordings,
)
from embedding.output.repair import repair_failures, repair_shards
from embedding.output.run_report import RunReport
from embedding.request import Request
from embedding.text import describe_agreement
from embedding.timeline import Timeline

_NO_IDS = np.empty(0, np.int64)


class TargetRun:
    """A target, its inventory and its backlog, during a run.

    Attributes:
        target: The target; its device is set once it is known.
        inventory: What the output held when it was last read.
        backlog: What the run has to do.
        report: The run report of the output.
    """

    def __init__(
        self, request: Request, target: Target, claim: Claim, parallel_map: ParallelMap, timeline: Timeline
    ) -> None:
        self._claim, self._parallel_map = claim, parallel_map
        self._run_id = claim.holder.run_id
        self.target = target
        self.report = RunReport(target.store, self._run_id, listed=len(request.listing.recordings), timeline=timeline)
        thorough = not self.report.last_run_was_complete
        self.inventory, self.backlog = request.compare(target, thorough=thorough, parallel_map=parallel_map)
        self._unchanged: set[int] = set()
        self._agreement: dict[str, float] | None = None

    def set_device(self, device: str, config: EmbedConfig) -> None:
        """Take note of the device of the encoders.

        Raises:
            RequestError: The output holds vectors of another device.
        """
        target = self.target.on_device(device)
        if target is not self.target:
            self.target = target
            target.write_description(config)

    def note_agreement(self, agreement: dict[str, float] | None, config: EmbedConfig, terminal: Terminal) -> None:
        """Take note of the agreement of the vectors with fp32: tell the user and store it, once it is known.

        Args:
            agreement: Fields of ``agreement.Agreement``; None while it is not known.
            config: The request.
            terminal: Receives a line for the user.
        """
        if agreement is None or self._agreement == agreement:
            return
        with suppress(OSError):  # the next call tries again; writing shards reports a storage that fails
            self.target.write_description(config, agreement)
            self._agreement = agreement
            settings = self.target.settings
            terminal.say(f"{settings.precision} vectors of {settings.model.name}: {describe_agreement(agreement)}")

    def read(self) -> None:
        """Read the output again; shards that are known are not read again."""
        self.inventory = self.target.store.read(known=self.inventory, parallel_map=self._parallel_map)

    def adopt_unchanged(self, unchanged: set[int]) -> None:
        """Read the output, and give rows of unchanged recordings the present identity of their recording.

        Args:
            unchanged: ``file_id`` of recordings whose audio is the same as before.
        """
        self._unchanged |= unchanged
        self.read()
        if new_ids := self.backlog.new_ids(self._unchanged):
            self._claim.check()
            self._read_changed(repair_shards(self.target.store, self.inventory, _NO_IDS, new_ids))

    def repair(self) -> None:
        """Remove rows that are repeated or superseded, and failures that were overcome."""
        self._claim.check()
        superseded = self.backlog.superseded(self.inventory)
        self._read_changed(repair_shards(self.target.store, self.inventory, superseded, {}))
        backlog = self.backlog
        left = backlog.listed["file_id"].to_numpy()[backlog.is_left(self.inventory, self._run_id)]
        tried = np.setdiff1d(backlog.todo, left)
        if repair_failures(self.target.store, self.inventory, backlog.listed, tried, self._run_id):
            self.read()

    def update_recordings(self, manifests: ManifestColumns) -> RecordingsTable | None:
        """Bring the table of recordings up to date.

        Args:
            manifests: The manifests of the run.

        Returns:
            The table; None where nothing can have changed. Of ten million recordings it takes a gigabyte.

        Raises:
            RequestError: The table is damaged.
        """
        nothing_new = not len(self.backlog.todo) and self.report.recordings_were_current
        if nothing_new and not manifests.tables and is_stored(self.target.store):
            return None
        former = read_stored(self.target.store)
        table = update_recordings(self.inventory, former, manifests, self._parallel_map)
        if former is None or not table.rows.equals(former):
            self._claim.check()
            write_recordings(self.target.store, table.rows)
        return table

    def read_balance(self) -> Balance:
        """Read the output, and return its balance."""
        self.read()
        return self.balance()

    def balance(self) -> Balance:
        """Return the balance of the output as it was last read."""
        return self.backlog.balance(self.inventory, self._unchanged)

    def _read_changed(self, shards: list[str]) -> None:
        """Read again the shards (URIs) whose content has changed."""
        if shards:
            self.inventory = self.inventory.restrict_to(set(self.inventory.shards) - set(shards))
            self.read()

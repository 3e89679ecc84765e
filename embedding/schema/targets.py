"""Targets: the models of a run, numbered from 0, each with an output of its own.

A recording or a window may be needed by some targets and not by others, for example when one output already holds it.
This module alone knows how the sets are stored: as one number per row, whose bit ``t`` says that target ``t`` is a
member.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

MOST_TARGETS = 16  # bits of the column
FIELD = pa.field("targets", pa.uint16())

# Numbers of targets.
Targets = frozenset[int]


def all_targets(n_targets: int) -> Targets:
    """Return the set of all targets of a run."""
    return frozenset(range(n_targets))


@dataclass(frozen=True)
class TargetColumn:
    """A set of targets for each row of a table.

    Attributes:
        bits: ``[rows]``, bit ``t`` of a row is set if target ``t`` needs the row.
    """

    bits: NDArray[np.uint16]

    @classmethod
    def of(cls, table: pa.Table) -> "TargetColumn":
        """Return the sets of a table that has the column."""
        return cls(table[FIELD.name].to_numpy())

    @classmethod
    def repeat(cls, targets: Collection[int], n_rows: int) -> "TargetColumn":
        """Return the same set for each of ``n_rows`` rows."""
        return cls(np.full(n_rows, sum(1 << target for target in targets), np.uint16))

    @classmethod
    def from_members(cls, members: Sequence[NDArray[np.bool_]]) -> "TargetColumn":
        """Return the sets that one array ``[rows]`` per target describes."""
        bits = np.zeros(len(members[0]), np.uint16)
        for target, rows in enumerate(members):
            bits |= rows.astype(np.uint16) << np.uint16(target)
        return cls(bits)

    def __len__(self) -> int:
        return len(self.bits)

    def __getitem__(self, rows: slice | NDArray[np.bool_]) -> "TargetColumn":
        return TargetColumn(self.bits[rows])

    def needed_by(self, target: int) -> NDArray[np.bool_]:
        """Return for each row whether ``target`` needs the row, ``[rows]``."""
        return (self.bits >> np.uint16(target) & np.uint16(1)).astype(bool)

    def needed(self) -> NDArray[np.bool_]:
        """Return for each row whether any target needs the row, ``[rows]``."""
        return self.bits != 0

    def without(self, target: int, rows: NDArray[np.bool_]) -> "TargetColumn":
        """Return the column without ``target`` in the sets of ``rows`` (``[rows]``)."""
        return TargetColumn(np.where(rows, self.bits & np.uint16(~(1 << target) & 0xFFFF), self.bits))

    def count(self) -> int:
        """Return the number of members of all sets together."""
        return int(np.bitwise_count(self.bits).sum())

    def as_list(self) -> list[Targets]:
        """Return the set of each row."""
        sets = {
            bits: frozenset(t for t in range(MOST_TARGETS) if bits >> t & 1) for bits in np.unique(self.bits).tolist()
        }
        return [sets[bits] for bits in self.bits.tolist()]

    def as_array(self) -> pa.Array:
        """Return the column as it stands in a table."""
        return pa.array(self.bits)

"""Globs, matched name by name while a tree is walked: the same on a disk and in S3."""

import fnmatch
import re


class Pattern:
    """A glob, matched name by name from some folder down, alike on a disk and in S3.

    ``**`` stands for any number of folders, a matched folder for everything in it; a hidden name (and macOS's ``._``
    companions are such) is matched only by what begins with a dot itself. The state of a match is the set of parts
    that may match the next name.
    """

    def __init__(self, *parts: str) -> None:
        if parts and parts[-1] == "**":
            parts = (*parts[:-1], "*")  # a/** is what lies in a, not a
        parts = (*parts, "**")
        self._any_depth = [part == "**" for part in parts]
        patterns = [("" if part.startswith(".") else r"(?!\.)") + fnmatch.translate(part) for part in parts]
        self._match = [re.compile(pattern).match for pattern in patterns]
        self._match_any_case = [re.compile(pattern, re.IGNORECASE).match for pattern in patterns]
        # A part, and what may match in its place because a ** also stands for no folder at all.
        self._from: list[frozenset[int]] = [frozenset()]
        for i in reversed(range(len(self._match))):
            self._from.insert(0, frozenset({i}) | (self._from[0] if self._any_depth[i] else frozenset()))
        self.start = self._from[0]

    def step(self, state: frozenset[int], name: str, *, any_case: bool = False) -> frozenset[int]:
        """Return the state after ``name``; empty where nothing below it can match.

        Args:
            state: the state before.
            name: the next name.
            any_case: take upper and lower case for the same.
        """
        following: frozenset[int] = frozenset()
        match = self._match_any_case if any_case else self._match
        for i in state:
            if match[i](name):
                following |= self._from[i if self._any_depth[i] else i + 1]
        return following

    def matches(self, state: frozenset[int]) -> bool:
        """Return whether the names so far match; the ``**`` that every pattern ends in is left then."""
        return len(self._match) - 1 in state


EVERYTHING = Pattern()

"""Glob patterns that are matched name by name while a tree is walked, with the same rules on disks and in S3."""

import fnmatch
import re


class GlobPattern:
    """A glob pattern, matched name by name from a folder downwards.

    ``**`` matches any number of folders. A folder that matches includes everything in it. A hidden name (also the name
    of a ``._`` companion file of macOS) matches only a part that begins with a dot. The state of a match is the set of
    parts of the pattern that may match the next name.

    Args:
        parts: The names of the pattern, as between slashes; without parts the pattern matches everything.

    Attributes:
        start: State before the first name.
    """

    def __init__(self, *parts: str) -> None:
        if parts and parts[-1] == "**":
            parts = (*parts[:-1], "*")  # a/** matches everything in a, and not a itself
        parts = (*parts, "**")
        self._any_depth = [part == "**" for part in parts]
        patterns = [("" if part.startswith(".") else r"(?!\.)") + fnmatch.translate(part) for part in parts]
        self._match = [re.compile(pattern).match for pattern in patterns]
        self._match_any_case = [re.compile(pattern, re.IGNORECASE).match for pattern in patterns]
        # For each part: the part itself and, after a **, the parts that follow, because a ** also matches no folder.
        self._from: list[frozenset[int]] = [frozenset()]
        for i in reversed(range(len(self._match))):
            self._from.insert(0, frozenset({i}) | (self._from[0] if self._any_depth[i] else frozenset()))
        self.start = self._from[0]

    def step(self, state: frozenset[int], name: str, *, any_case: bool = False) -> frozenset[int]:
        """Return the state after ``name``; empty if nothing below ``name`` can match.

        Args:
            state: The state before.
            name: The next name.
            any_case: Treat upper and lower case as the same.
        """
        following: frozenset[int] = frozenset()
        match = self._match_any_case if any_case else self._match
        for i in state:
            if match[i](name):
                following |= self._from[i if self._any_depth[i] else i + 1]
        return following

    def matches(self, state: frozenset[int]) -> bool:
        """Return whether the names so far match: only the ``**`` at the end of every pattern is left."""
        return len(self._match) - 1 in state


EVERYTHING = GlobPattern()

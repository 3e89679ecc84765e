"""Entries of a listing, and the file names that count as recordings."""

import os
from collections import Counter
from functools import cache
from importlib.util import find_spec

import soundfile as sf

from embedding.decoding import pyav_sound

UNKNOWN_SIZE = -1

# File, size in bytes, version, name of the file after symbolic links are resolved, and a number that hard links to one
# file share, 0 for a file with one name.
Entry = tuple[str, int, str, str, int]

# The suffix of most formats is libsndfile's name of the format. These formats have further suffixes.
_MORE_SUFFIXES = {
    "AIFF": ("aif", "aifc"),
    "AU": ("snd",),
    "IRCAM": ("sf",),
    "MP3": ("mp1", "mp2"),
    "NIST": ("sph",),
    "OGG": ("oga", "opus"),
    "SVX": ("8svx", "iff"),
}
# RAW has no header to read. A .mat file in an archive of recordings is a table of annotations, not MATLAB's rare audio
# format: thousands of these files would be thousands of failures. A file that is named explicitly, as an input or in a
# manifest, is a recording whatever its suffix.
_NOT_BY_SUFFIX = {"RAW", "MAT4", "MAT5", "WAVEX", "MPC2K"}

# Ignored files are counted by suffix and reported in one line. The text after the last dot of a name may be a time
# stamp.
_LONGEST_SUFFIX = 8


@cache
def audio_suffixes() -> frozenset[str]:
    """Return every suffix that libsndfile reads, and PyAV if it is installed, in lower case, with the dot."""
    formats = sf.available_formats().keys() - _NOT_BY_SUFFIX
    names = {name.lower() for name in formats} | {more for name in formats for more in _MORE_SUFFIXES.get(name, ())}
    others = pyav_sound.SUFFIXES if find_spec("av") is not None else frozenset()
    return frozenset("." + name for name in names) | others


def suffix_of(path: str) -> str:
    """Return the suffix of a name in lower case, with the dot; empty if the name has no suffix."""
    return os.path.splitext(path)[1].lower()  # noqa: PTH122 — pathlib takes 13 s longer for 10⁷ names


def is_recording_name(path: str, ignored: Counter[str]) -> bool:
    """Return whether a name has the suffix of a recording; otherwise count the file in ``ignored``."""
    try:
        path.encode()
    except UnicodeEncodeError:
        ignored["with a name that is not UTF-8"] += 1
        return False
    suffix = suffix_of(path)
    if suffix in audio_suffixes():
        return True
    if not suffix:
        suffix = "without suffix"
    elif len(suffix) > _LONGEST_SUFFIX:
        suffix = "with a long suffix"
    ignored[suffix] += 1
    return False

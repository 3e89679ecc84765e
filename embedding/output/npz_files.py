"""Arrays of a .npz file, which any program may have written or damaged."""

import io
import zipfile
import zlib

import numpy as np
from numpy.typing import NDArray

# Far above any probe: 10,000 classes of 2,048 numbers are 160 MB.
MOST_BYTES = 2 << 30


class BadArraysError(ValueError):
    """A file that does not hold the arrays; the message is one line without the name of the file."""


def read_arrays(content: bytes, needed: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, NDArray]:
    """Return arrays of numbers, booleans or texts by name.

    Args:
        content: The file.
        needed: Names of arrays that the file must have.
        optional: Names of arrays that it may have.

    Raises:
        BadArraysError: The file is no .npz, an array is missing or damaged, or they unpack to more than MOST_BYTES.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            if lacking := set(needed) - set(members):
                has = ", ".join(sorted(members)) or "nothing"
                raise BadArraysError(f"it lacks {min(lacking)!r} (it has: {has})")
            chosen = [name for name in (*needed, *optional) if name in members]
            n_bytes = sum(members[name].file_size for name in chosen)
            if n_bytes > MOST_BYTES:
                raise BadArraysError(f"it unpacks to {n_bytes:,} bytes, more than {MOST_BYTES:,}")
            return {name: _parse(name, archive.read(members[name])) for name in chosen}
    except BadArraysError:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError, OSError) as error:
        # RuntimeError: encrypted; NotImplementedError, one of them: an unknown compression.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BadArraysError(f"it cannot be read as .npz: {reason}") from None


def _parse(name: str, content: bytes) -> NDArray:
    stream = io.BytesIO(content)
    version = np.lib.format.read_magic(stream)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(stream)
    if dtype.kind not in "bfiuU":
        raise BadArraysError(f"{name!r} holds neither numbers nor texts")
    # A header of a hundred bytes may claim any size, which numpy would allocate.
    n_bytes = int(np.prod(np.array(shape, object), initial=1)) * dtype.itemsize
    if n_bytes != len(content) - stream.tell():
        raise BadArraysError(f"{name!r} is not as long as its header says")
    return np.load(io.BytesIO(content), allow_pickle=False)

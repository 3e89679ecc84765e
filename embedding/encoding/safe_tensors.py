"""Checkpoints as safetensors files. Code in a checkpoint is never run."""

import pickle
import struct
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from embedding.encoding.checkpoints import Checkpoint, open_safetensors
from embedding.errors import RequestError

if TYPE_CHECKING:
    pass

# Largest ratio of a checkpoint's content to its file. torch.save does not compress, but a tensor that two layers share
# is counted twice.
MAX_UNPACKED_RATIO = 4
# Errors of torch.load and zipfile for files that are no checkpoint (seen: KeyError for a text, IndexError for zeros).
_NO_CHECKPOINT = (
    *(pickle.UnpicklingError, zipfile.BadZipFile, struct.error, RuntimeError, EOFError, ValueError),
    *(LookupError, TypeError, AttributeError, AssertionError, OverflowError, MemoryError),
)


@contextmanager
def as_safetensors(checkpoint: Checkpoint) -> Iterator[str]:
    """Provide a safetensors file with the tensors of a checkpoint; a temporary file for other formats.

    avex opens other formats with ``weights_only=False``, which runs any code in a pickle. Here these files are read as
    tensors only.

    Args:
        checkpoint: Weights on this machine, not random ones.

    Raises:
        RequestError: The file is damaged, contains code or no tensors, or unpacks to far more than its size.
    """
    import torch
    from safetensors.torch import save_file

    assert checkpoint.path is not None
    if checkpoint.path.endswith(".safetensors"):
        with open_safetensors(checkpoint, "pt"):
            pass
        yield checkpoint.path
        return
    n_bytes = Path(checkpoint.path).stat().st_size
    try:
        _check_unpacked_size(checkpoint, _unpacked_bytes(checkpoint.path), n_bytes)
        content = torch.load(checkpoint.path, map_location="cpu", weights_only=True)
    except _NO_CHECKPOINT as error:
        raise RequestError(
            f"--checkpoint: {checkpoint.uri} cannot be read as tensors only (code in a checkpoint is never run); "
            "save it as .safetensors"
        ) from error
    for wrapper in ("model_state_dict", "state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict):
        raise RequestError(f"--checkpoint: {checkpoint.uri} holds no named tensors")
    tensors = {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}
    _check_unpacked_size(checkpoint, sum(value.numel() * value.element_size() for value in tensors.values()), n_bytes)
    tensors = {name: value.clone().contiguous() for name, value in tensors.items()}
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "tensors.safetensors")
        save_file(tensors, path)
        yield path


def _unpacked_bytes(path: str) -> int:
    """Return the unpacked size of a zip file, the format of torch.save, in bytes; 0 for older formats."""
    if not zipfile.is_zipfile(path):
        return 0
    with zipfile.ZipFile(path) as packed:
        return sum(entry.file_size for entry in packed.infolist())


def _check_unpacked_size(checkpoint: Checkpoint, n_bytes: int, n_file_bytes: int) -> None:
    """Refuse a file with far more content than its size: compressed, or with tensors that are views of few numbers."""
    if n_bytes > MAX_UNPACKED_RATIO * n_file_bytes:
        raise RequestError(
            f"--checkpoint: {checkpoint.uri} unpacks {n_file_bytes:,} bytes to {n_bytes:,}, more than weights do; save "
            "it as .safetensors"
        )

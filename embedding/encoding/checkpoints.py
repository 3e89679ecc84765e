"""A model's weights: fetched once by the driver, known by their digest, and brought from there to every node.

The encoders of a thousand nodes do not ask the hub or S3 for them. They get them from the driver through Ray, whose
nodes hand objects on to each other, and one process of a node writes them down for all of its encoders.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock
from safetensors import SafetensorError, safe_open

from embedding import storage
from embedding.config import RANDOM_CHECKPOINT
from embedding.errors import RequestError, RunError, root_cause
from embedding.storage import s3

RANDOM_SEED = 0
_HUB_SCHEME = "hf://"


@dataclass(frozen=True)
class Checkpoint:
    """Weights as they lie on a machine. ``path`` is None for seeded random weights."""

    uri: str
    path: str | None
    digest: str

    @property
    def is_of_hub(self) -> bool:
        return self.uri.startswith(_HUB_SCHEME)


def fetch_checkpoint(model_name: str, uri: str) -> Checkpoint:
    """Bring the weights to this machine (once: hub and S3 are cached) and take their digest.

    Raises:
        RequestError: they cannot be had; the message names the model, the cause and the way out.
    """
    if uri == RANDOM_CHECKPOINT:
        return Checkpoint(uri, None, f"random, seed {RANDOM_SEED}")
    if uri.startswith(_HUB_SCHEME):
        path = fetch_hub_file(model_name, uri, "weights")
    elif storage.is_s3(uri):
        path = _from_s3(storage.normalise(uri, "--checkpoint"))
    else:
        path = storage.normalise(uri, "--checkpoint")
        if not Path(path).is_file():
            raise RequestError(f"--checkpoint: {path} is not a file")
    return Checkpoint(uri, path, _digest(path))


@contextmanager
def open_tensors(checkpoint: Checkpoint, framework: str) -> Iterator[safe_open]:
    """A .safetensors checkpoint to read from.

    Raises:
        RequestError: it is damaged.
    """
    try:
        with safe_open(checkpoint.path, framework) as tensors:
            yield tensors
    except SafetensorError as error:
        raise RequestError(f"--checkpoint: {checkpoint.uri} is damaged: {error}") from error


def keep(checkpoint: Checkpoint, fetch: Callable[[], Any]) -> Checkpoint:
    """The same weights on this machine: where they already lie, or in its cache, into which one process brings them.

    Args:
        fetch: gives the file's bytes; called by one process of this machine at a time, and only if nothing here has
            the digest.

    Raises:
        RunError: what ``fetch`` gave are other bytes.
        OSError: this machine's cache cannot be written.
    """
    if checkpoint.path is None or _is(checkpoint, checkpoint.path):
        return checkpoint
    suffix = Path(checkpoint.path).suffix  # it says how to read them
    path = str(_cache() / f"{checkpoint.digest.removeprefix('sha256:')}{suffix}")
    with FileLock(f"{path}.lock"):
        if not _is(checkpoint, path):
            storage.write_bytes(path, fetch())
            if not _is(checkpoint, path):
                storage.delete(path)
                raise RunError(
                    f"the weights {checkpoint.uri} came to this node damaged: another digest than the driver's"
                )
    return replace(checkpoint, path=path)


def _is(checkpoint: Checkpoint, path: str) -> bool:
    return Path(path).is_file() and _digest(path) == checkpoint.digest


def _digest(path: str) -> str:
    with Path(path).open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def _cache() -> Path:
    folder = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "avex-batch"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def fetch_hub_file(model_name: str, uri: str, what: str) -> str:
    """Where a file of the hub lies on this machine: its cache, which it is brought to if need be.

    Raises:
        RequestError: it cannot be had; ``what`` of the model it is, is said.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    owner, _, rest = uri.removeprefix(_HUB_SCHEME).partition("/")
    repo, _, filename = rest.partition("/")
    if "@" in owner or ":" in owner:  # not repeated: it may be a secret
        raise RequestError(
            "--checkpoint: no owner's name has a ':' or '@' in it; credentials belong in the environment (HF_TOKEN), "
            "not in a URI"
        )
    try:
        return hf_hub_download(f"{owner}/{repo}", filename)
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        raise RequestError(
            f"--model: the {what} of {model_name} ({uri}) could not be downloaded: {root_cause(error)} — pass a file "
            "with --checkpoint, or set HF_HOME to a cache that holds them"
        ) from error


def _from_s3(uri: str) -> str:
    try:
        version = s3.info(uri).get("ETag")  # a folder has none, and cannot be read
        key = hashlib.sha256(f"{uri}\0{version}".encode()).hexdigest()[:24]
        path = _cache() / f"{key}-{uri.rpartition('/')[2]}"
        if not path.exists():
            storage.write_bytes(str(path), storage.read_bytes(uri))
    except OSError as error:
        raise RequestError(f"--checkpoint: {uri} cannot be fetched: {error.strerror or error}") from error
    return str(path)

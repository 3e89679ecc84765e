"""Checkpoints: fetched once by the driver, identified by their digest, and copied from the driver to every node.

The encoders of a thousand nodes do not download weights from the hub or S3. The driver puts the weights into Ray's
object store, Ray's nodes pass objects on to each other, and one process per node writes the file for all encoders of
that node.
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
from embedding.quiet import logging_hidden
from embedding.storage import s3

RANDOM_SEED = 0
_HUB_SCHEME = "hf://"


@dataclass(frozen=True)
class Checkpoint:
    """Weights as a file of one machine.

    Attributes:
        uri: Source of the weights, as the user or the model's specification states it.
        path: The file; None for seeded random weights.
        digest: Hash of the file's content, which identifies the weights.
    """

    uri: str
    path: str | None
    digest: str

    @property
    def is_on_hub(self) -> bool:
        """True if the source is the Hugging Face hub."""
        return self.uri.startswith(_HUB_SCHEME)


def fetch_checkpoint(model_name: str, uri: str) -> Checkpoint:
    """Fetch weights to this machine and compute their digest; files of the hub and of S3 are cached.

    Args:
        model_name: Name of the model, for error messages.
        uri: Path, ``s3://`` or ``hf://`` URI, or the word ``random``.

    Raises:
        RequestError: The weights cannot be fetched; the message names the model, the cause and a remedy.
    """
    if uri == RANDOM_CHECKPOINT:
        return Checkpoint(uri, None, f"random, seed {RANDOM_SEED}")
    if uri.startswith(_HUB_SCHEME):
        path = fetch_hub_file(model_name, uri, "weights")
    elif storage.is_s3(uri):
        path = _fetch_from_s3(storage.normalise(uri, "--checkpoint"))
    else:
        path = storage.normalise(uri, "--checkpoint")
        if not Path(path).is_file():
            raise RequestError(f"--checkpoint: {path} is not a file")
    return Checkpoint(uri, path, _digest(path))


@contextmanager
def open_safetensors(checkpoint: Checkpoint, framework: str) -> Iterator[safe_open]:
    """Open a checkpoint whose file is in the format safetensors.

    Args:
        checkpoint: The checkpoint.
        framework: Library of the tensors that are read: ``pt`` or ``numpy``.

    Raises:
        RequestError: The file is damaged.
    """
    try:
        with safe_open(checkpoint.path, framework) as tensors:
            yield tensors
    except SafetensorError as error:
        raise RequestError(f"--checkpoint: {checkpoint.uri} is damaged: {error}") from error


def ensure_local(checkpoint: Checkpoint, fetch: Callable[[], Any]) -> Checkpoint:
    """Return the checkpoint with a path on this machine; write the file to this machine's cache if it is missing.

    Args:
        checkpoint: The checkpoint with the driver's path, which may hold other content on this machine.
        fetch: Returns the content of the file. One process of this machine at a time calls it, and only if no file
            of this machine has the digest.

    Raises:
        RunError: The content that ``fetch`` returned has another digest.
        OSError: The cache of this machine cannot be written.
    """
    if checkpoint.path is None or _has_digest(checkpoint.path, checkpoint.digest):
        return checkpoint
    suffix = Path(checkpoint.path).suffix  # decides how the file is read
    path = str(cache_folder() / f"{checkpoint.digest.removeprefix('sha256:')}{suffix}")
    with FileLock(f"{path}.lock"):
        if not _has_digest(path, checkpoint.digest):
            storage.write_bytes(path, fetch())
            if not _has_digest(path, checkpoint.digest):
                storage.delete(path)
                raise RunError(
                    f"the weights {checkpoint.uri} came to this node damaged: their digest is not the driver's"
                )
    return replace(checkpoint, path=path)


def _has_digest(path: str, digest: str) -> bool:
    return Path(path).is_file() and _digest(path) == digest


def _digest(path: str) -> str:
    with Path(path).open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def cache_folder() -> Path:
    """Return the folder in which this program keeps files of this machine; create it if it is missing."""
    folder = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "avex-batch"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def fetch_hub_file(model_name: str, uri: str, content: str) -> str:
    """Download a file from the Hugging Face hub, unless it is in the hub's cache.

    Args:
        model_name: Name of the model, for error messages.
        uri: ``hf://owner/repository/file``.
        content: Description of the file, for error messages: "weights" or "label map".

    Returns:
        Path of the file in the cache.

    Raises:
        RequestError: The URI holds a credential, or the file cannot be downloaded.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    owner, _, rest = uri.removeprefix(_HUB_SCHEME).partition("/")
    repo, _, filename = rest.partition("/")
    if "@" in owner or ":" in owner:  # the message does not repeat the owner, which may contain a secret
        raise RequestError(
            "--checkpoint: the name of an owner cannot contain ':' or '@'; credentials belong in the environment "
            "(HF_TOKEN), not in a URI"
        )
    try:
        with logging_hidden("huggingface_hub"):  # the hub's client warns of every try; the last error is raised
            return hf_hub_download(f"{owner}/{repo}", filename)
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        raise RequestError(
            f"--model: the {content} of {model_name} ({uri}) could not be downloaded: {root_cause(error)} — pass a "
            "file with --checkpoint, or set HF_HOME to a cache that contains the files"
        ) from error


def _fetch_from_s3(uri: str) -> str:
    try:
        version = s3.info(uri).get("ETag")  # a folder has no ETag; reading it fails below
        key = hashlib.sha256(f"{uri}\0{version}".encode()).hexdigest()[:24]
        path = cache_folder() / f"{key}-{uri.rpartition('/')[2]}"
        if not path.exists():
            storage.write_bytes(str(path), storage.read_bytes(uri))
    except OSError as error:
        raise RequestError(f"--checkpoint: {uri} cannot be fetched: {error.strerror or error}") from error
    return str(path)

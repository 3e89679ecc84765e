"""Graphs of models in the cache of a machine, so that encoders on CPUs start without torch and avex.

Importing torch and avex and building a model takes 5 to 10 s of one core in each encoder, and up to 1.9 GB of memory.
A process of its own does that once per checkpoint (``graph_writer.py``), and writes the graph in OpenVINO's format;
encoders open the file. OpenVINO maps the weights into memory, where the encoders of a machine share them.
"""

import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import xxhash
from filelock import FileLock
from safetensors import safe_open

from embedding.encoding.checkpoints import Checkpoint, cache_folder
from embedding.encoding.models import Model
from embedding.errors import RequestError, RunError
from embedding.storage import TEMPORARY_PREFIX

if TYPE_CHECKING:
    from embedding.encoding.settings import Settings
    from embedding.encoding.spectra import FrontEnd

# Architectures whose graphs can be written. EAT computes spectra with a processor of its own.
GRAPH_ARCHITECTURES = ("beats", "efficientnet")
# Files that no run has opened for this many days are deleted when others are written: those of BEATs are 360 MB.
KEPT_DAYS = 60

GRAPH, WEIGHTS, CONSTANTS, CONTENTS = "graph.xml", "graph.bin", "constants.safetensors", "contents.json"

# Modules that decide the content of the files: a change in one of them makes every machine write new files.
_SOURCES = ("graph_writer.py", "openvino_graph.py", "optimized.py", "spectra.py", "graph_files.py")
_PACKAGES = ("avex", "openvino", "torch")


@dataclass(frozen=True)
class GraphFiles:
    """Files of one model with the weights of one checkpoint.

    Attributes:
        folder: Folder of the files.
    """

    folder: Path

    @property
    def graph(self) -> Path:
        """The graph, from spectra to unpooled features, in OpenVINO's format; its weights are beside it."""
        return self.folder / GRAPH

    @property
    def constants(self) -> Path:
        """Constants of the front end, and the classifier if the checkpoint has one: a safetensors file."""
        return self.folder / CONSTANTS

    def front_end(self) -> "FrontEnd":
        """Read the front end."""
        # Imports SciPy, which the driver does not need.
        from embedding.encoding.spectra import BeatsFrontEnd, EfficientNetFrontEnd, MelFilters

        with safe_open(self.constants, "numpy") as stored:
            values = json.loads(stored.metadata()["front_end"])
            filters = MelFilters(
                stored.get_tensor("window"), stored.get_tensor("mel"), hop=values["hop"], n_fft=values["n_fft"]
            )
        if values["architecture"] == "beats":
            return BeatsFrontEnd(filters, mean=values["mean"], std=values["std"])
        return EfficientNetFrontEnd(filters, centered=values["centered"])

    @property
    def has_graph(self) -> bool:
        """True unless the model has other layers than the published ones, for which there is no graph."""
        return self.graph.exists()

    def is_intact(self) -> bool:
        """Return True if all files are there, with the content that was written."""
        try:
            checksums = json.loads((self.folder / CONTENTS).read_text(encoding="utf-8"))
            return all(checksum(self.folder / name) == expected for name, expected in checksums.items())
        except (OSError, ValueError, AttributeError):
            return False


def can_use_graph(settings: "Settings") -> bool:
    """Return True if encoders on CPUs can compute ``settings`` from a graph, without torch."""
    return settings.model.architecture in GRAPH_ARCHITECTURES and not settings.layers and not settings.mask_padding


def graph_folder(model: Model, checkpoint: Checkpoint) -> Path:
    """Return the folder of a model's files; it exists once they are written.

    Its name depends on all that determines their content: the model, the weights, the packages and this program's code.
    """
    sources = [hashlib.sha256(Path(__file__).with_name(name).read_bytes()).hexdigest() for name in _SOURCES]
    versions = [metadata.version(package) for package in _PACKAGES]
    text = json.dumps([model.name, checkpoint.digest, versions, sources])
    return cache_folder() / "graphs" / hashlib.sha256(text.encode()).hexdigest()[:32]


def open_graph_files(model: Model, checkpoint: Checkpoint) -> GraphFiles:
    """Return the files of a model; write them if they are missing or damaged. One process at a time writes.

    Args:
        model: The model; its architecture is one of ``GRAPH_ARCHITECTURES``.
        checkpoint: Weights of the model, on this machine.

    Raises:
        RequestError: The checkpoint is damaged, or does not fit the model.
        RunError: The process that writes the files died.
        OSError: The cache of this machine cannot be written.
    """
    folder = graph_folder(model, checkpoint)
    folder.parent.mkdir(parents=True, exist_ok=True)
    files = GraphFiles(folder)
    with FileLock(f"{folder}.lock"):
        if not files.is_intact():
            temporary = folder.with_name(f"{TEMPORARY_PREFIX}{folder.name}")
            for leftover in (temporary, folder):  # of a process that died, or damaged
                if leftover.exists():
                    shutil.rmtree(leftover)
            temporary.mkdir()
            _write_in_own_process(model, checkpoint, temporary)
            temporary.rename(folder)
            _delete_unused(folder.parent)
        os.utime(folder)
    return files


def _delete_unused(graphs: Path) -> None:
    """Delete the files of checkpoints that no run has opened for ``KEPT_DAYS``."""
    oldest_s = time.time() - KEPT_DAYS * 86_400
    for folder in graphs.iterdir():
        if folder.is_dir() and folder.stat().st_mtime < oldest_s:
            shutil.rmtree(folder)
            folder.with_name(f"{folder.name}.lock").unlink(missing_ok=True)


def checksum(path: Path) -> str:
    """Return a hash of a file's content: of 360 MB in less than 0.1 s."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()  # pyright: ignore[reportArgumentType]


# --- the process that writes ------------------------------------------------------------------------------------


def _write_in_own_process(model: Model, checkpoint: Checkpoint, folder: Path) -> None:
    """Run ``graph_writer.write`` in a new process, whose gigabyte of torch and avex ends with it."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", f"from {__name__} import main; main()"]
    # A session of its own: Ctrl-C in a terminal is for the job. The process ends when its stdin does.
    with subprocess.Popen(
        command,
        bufsize=0,  # else closing the pipe of a process that died would write the rest once more, and fail
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            with suppress(BrokenPipeError):  # it died; its exit code is told below
                process.stdin.write(pickle.dumps((model, checkpoint, folder)))
            answer = process.stdout.read()
            process.wait()
        finally:
            process.kill()
    if not answer:
        raise RunError(
            f"the process that prepares {model.name} for this machine's CPUs died with exit code {process.returncode}: "
            "out of memory? It needs 3 GB once; run the same command again"
        )
    error = pickle.loads(answer)
    if isinstance(error, str):
        raise RuntimeError(f"preparing {model.name} failed:\n{error}")
    if error is not None:
        raise error


def main() -> None:
    """Write the files that stdin asks for; answer on stdout with None, an exception, or the traceback of a bug."""
    # A library's prints must not get into the answer.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    model, checkpoint, folder = pickle.load(sys.stdin.buffer)

    def end_with_parent() -> None:
        sys.stdin.buffer.read()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    answer: Exception | str | None = None
    try:
        from embedding.encoding.graph_writer import write

        write(model, checkpoint, folder)
    except (RequestError, OSError) as error:
        answer = error
    except Exception:  # noqa: BLE001 — a bug, raised again in the parent
        answer = traceback.format_exc()
    answers.write(pickle.dumps(answer))
    answers.close()
    os._exit(0)

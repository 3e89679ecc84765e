"""Write the graphs of a run's models while Ray starts."""

import threading
from collections.abc import Callable, Sequence

from embedding.encoding.graph_files import can_use_graph, graph_folder, open_graph_files
from embedding.encoding.settings import Settings


def prepare_graphs(
    targets: Sequence[Settings], say: Callable[[str], None], warn: Callable[[str], None]
) -> threading.Thread:
    """Write graphs that this machine's cache lacks, in a thread. Encoders wait until their graph is written.

    Args:
        targets: Settings of the run's targets, whose encoders run on CPUs of this machine.
        say: Prints a line for the user.
        warn: Prints a line that the user should not miss.

    Returns:
        The thread. It ends with the process.
    """
    thread = threading.Thread(target=_write, args=(targets, say, warn), daemon=True)
    thread.start()
    return thread


def _write(targets: Sequence[Settings], say: Callable[[str], None], warn: Callable[[str], None]) -> None:
    for settings in targets:
        if not can_use_graph(settings):
            continue
        try:
            if not graph_folder(settings.model, settings.checkpoint).exists():
                say(f"preparing {settings.model.name} for this machine's CPUs (about 15 s, once)")
                open_graph_files(settings.model, settings.checkpoint)
        except OSError as error:
            warn(
                f"the prepared model cannot be kept: {error}; each start takes some seconds "
                "and 1 GB per worker more. Set XDG_CACHE_HOME to a folder that can be written"
            )
            return
        except Exception:  # noqa: BLE001 — the encoders meet it too, and their error ends the run
            return

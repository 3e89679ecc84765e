"""Audio archives to embeddings.

    import embedding

    result = embedding.embed(input="recordings/", output="embeddings/", window_s=5)
    output = embedding.open_output("embeddings/")

The jobs of the command line have the same options: ``python -m jobs.embed --help``. docs/architecture.md shows the
modules.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from embedding.errors import RequestError, RunError

if TYPE_CHECKING:
    from embedding.api import EmbedResult, LazyTable, Output, embed, open_output

__all__ = ["EmbedResult", "LazyTable", "Output", "RequestError", "RunError", "embed", "open_output"]


def __getattr__(name: str) -> Any:
    # Imported when it is used: the interface needs numpy and pyarrow, and `--help` of a command does not.
    if name in __all__:
        return getattr(import_module("embedding.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

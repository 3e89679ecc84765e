"""BEATs with fewer layers, for tests of what does not depend on their number."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from embedding.encoding.models import ARCHITECTURES
from tests.support.models import BEATS, EFFICIENTNET, write_checkpoint

# Layers are equal in all but their weights; the first one also holds the position bias.
N_LAYERS = 2


@pytest.fixture(scope="module")
def few_layers(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Build BEATs with N_LAYERS of its 12 layers, in a fifth of the time; ``test_reference_loop.py`` has all of them.

    Graphs are written in this process, because a process of its own would build all layers. The checkpoints of all
    layers are written before.
    """
    import avex

    from embedding.encoding.graph_writer import write

    spec = avex.get_model_spec(BEATS)
    assert spec is not None
    assert spec.init_config is not None
    architecture = replace(ARCHITECTURES["beats"], layer_dims=(768,) * (1 + N_LAYERS))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(spec.init_config, "encoder_layers", N_LAYERS)
        patch.setitem(ARCHITECTURES, "beats", architecture)
        patch.setattr("embedding.encoding.graph_files._write_in_own_process", write)
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield N_LAYERS


@pytest.fixture(scope="module")
def shallow_checkpoints(few_layers: int, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint per architecture, for ``few_layers``."""
    folder = tmp_path_factory.mktemp("shallow")
    return {name: write_checkpoint(name, folder) for name in (BEATS, EFFICIENTNET)}

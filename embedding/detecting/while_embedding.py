"""Detections while an archive is embedded: workers score the vectors that they write, before these leave the memory."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

from embedding import storage
from embedding.cli.terminal import Terminal
from embedding.config import EmbedConfig
from embedding.derived.derive import PartialsOfShards
from embedding.detecting.detect import detect
from embedding.detecting.plan import DetectOptions, VectorColumn, plan_probe, refuse_others
from embedding.errors import RequestError
from embedding.job import Target
from embedding.output import json_files
from embedding.output.json_files import SettingsRecord
from embedding.probing.stored_probe import read_probe
from embedding.schema.vectors import EMBEDDING


def scoring_of(config: EmbedConfig) -> Callable[[Target], PartialsOfShards]:
    """Return what makes the scoring of a target's shards, for ``driver.embed``; it refuses a probe that does not fit.

    Args:
        config: A request with ``--detect``.
    """
    options = _options_of(config)
    assert options.probe is not None
    with _named_detect():
        probe = read_probe(options.root, options.probe)
    if probe.layer is not None:
        raise RequestError(
            f"--detect: {probe.name} scores the vectors of {probe.layer}: run jobs.detect when they are stored"
        )

    def make(target: Target) -> PartialsOfShards:
        # As they are read back from shards, so that later runs of jobs.detect find equal settings.
        settings = json_files.parse(SettingsRecord, target.store.settings.encode()).model_dump(exclude_unset=True)
        dim = target.settings.model.traits.dim
        with _named_detect():
            plan = plan_probe(options, probe, VectorColumn(EMBEDDING, dim, settings), Terminal(Console(quiet=True)))
            refuse_others(options, plan)
        return PartialsOfShards(plan.output(options), plan.derivation)

    return make


@contextmanager
def _named_detect() -> Iterator[None]:
    """Name the option of jobs.embed in messages of jobs.detect."""
    try:
        yield
    except RequestError as error:
        message = str(error).removeprefix("--probe: ").removeprefix("--name: ")
        raise RequestError(f"--detect: {message}".replace("add --replace", "run jobs.detect --replace")) from error


def detect_after(config: EmbedConfig, terminal: Terminal) -> None:
    """Make the detections of ``--detect`` from the scores, and from shards that were stored before.

    Raises:
        RunError: Recordings were left out.
    """
    detect(_options_of(config), terminal, verbose=config.verbose).outcome.refuse_incomplete("detect")


def _options_of(config: EmbedConfig) -> DetectOptions:
    return DetectOptions(storage.normalise(config.output, "--output"), config.detect)

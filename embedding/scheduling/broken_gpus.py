"""GPUs that a run has given up: said, held where no encoder gets them, and left out of the plan."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from embedding.console import People
from embedding.errors import RunError
from embedding.scheduling.gpus import Gpu, set_aside
from embedding.scheduling.progress import GPU_FAULTS
from embedding.scheduling.resources import Plan


class BrokenGpus:
    """The GPUs that a run has given up so far."""

    def __init__(self, people: People) -> None:
        self._people = people
        self._known: dict[Gpu, str] = {}
        self._new: dict[Gpu, str] = {}
        self._held: list[Any] = []

    @property
    def is_new(self) -> bool:
        """Whether there are GPUs that have not been set aside yet."""
        return bool(self._new)

    def look(self, broken: Mapping[Gpu, str]) -> None:
        """Take note of all GPUs that have been given up, each with its last error."""
        self._new = {gpu: error for gpu, error in broken.items() if gpu not in self._known}

    def set_aside(self, plan: Plan) -> Plan:
        """Hold the new ones; return the plan for the encoders that are left.

        Raises:
            RunError: no GPU is left.
        """
        for gpu, error in self._new.items():
            self._people.warn(f"{gpu} failed {GPU_FAULTS} times and is not used any more in this run: {error}")
        # Encoders that share a GPU lose it together.
        encoders_each = max(1, int(1 / plan.encoder_gpus + 1e-9))
        n_actors = plan.n_actors - encoders_each * len(self._new)
        self._known |= self._new
        if n_actors <= 0:
            gpu, error = next(iter(self._new.items()))
            raise RunError(
                f"no GPU is left to encode on: {gpu} failed {GPU_FAULTS} times: {error}; what is stored stays valid, "
                "run the same command again to go on"
            )
        self._held += set_aside(self._new.keys(), len(self._held))
        self._new = {}
        return replace(plan, n_actors=n_actors)

"""The request of a run: options that are checked, recordings that are listed, targets that are resolved."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from embedding import storage
from embedding.config import MODEL_FOLDER, EmbedConfig
from embedding.encoding.settings import Settings
from embedding.errors import RequestError
from embedding.job import Target
from embedding.listing.listing import Listing, describe_not_found, list_recordings
from embedding.output.backlog import Backlog, former_versions
from embedding.output.inventory import Inventory, ParallelMap, map_in_threads
from embedding.output.store import Store


@dataclass(frozen=True)
class Request:
    """A listing, and a target for each model."""

    config: EmbedConfig
    listing: Listing
    targets: tuple[Target, ...]

    @classmethod
    def of(cls, config: EmbedConfig) -> "Request":
        """List the inputs and resolve the models.

        Raises:
            RequestError: The request makes no sense.
        """
        configs = config.per_model()
        for each in configs:
            storage.normalise(each.output, "--output")  # a mistake here is reported before a long listing
        listing = list_recordings(config.input, config.limit)
        if listing.n_not_found == len(listing.recordings) and not storage.is_s3(listing.not_found[0]):
            raise RequestError(f"--input: {describe_not_found(listing)}")
        targets = tuple(Target.of(each) for each in configs)
        _refuse_unequal_windows([target.settings for target in targets])
        request = cls(config, listing, targets)
        request._refuse_mixed_outputs()
        request.refuse_other_settings()
        return request

    def read_again(self) -> "Request":
        """Return the request with the devices of the vectors that its outputs hold by now.

        Raises:
            RequestError: An output holds vectors of other settings by now.
        """
        request = replace(self, targets=tuple(target.with_stored_device() for target in self.targets))
        request.refuse_other_settings()
        return request

    def refuse_other_settings(self) -> None:
        """Refuse outputs that hold vectors of other settings.

        Raises:
            RequestError: An output does; the message names each difference.
        """
        for target in self.targets:
            target.store.refuse_other_settings(target.settings.guarded())

    def _refuse_mixed_outputs(self) -> None:
        """Raise RequestError where the output of one model and the outputs of several would lie in one place."""
        root = storage.normalise(self.config.output, "--output")
        has_one = Store(root, "").stored_settings() is not None
        has_several = storage.first_folder(root, MODEL_FOLDER) is not None
        if len(self.targets) > 1 and has_one and not has_several:
            raise RequestError(
                f"--output: {root} holds the vectors of one model, and the vectors of several models go each into a "
                "folder of their own; choose another --output"
            )
        if len(self.targets) == 1 and has_several and not has_one:
            own = storage.join(root, f"{MODEL_FOLDER}{self.targets[0].settings.model.name}")
            raise RequestError(
                f"--output: {root} holds the outputs of several models, each in its folder; the output of this model "
                f"alone is --output {own}"
            )

    def compare(
        self, target: Target, *, thorough: bool, parallel_map: ParallelMap = map_in_threads
    ) -> tuple[Inventory, Backlog]:
        """Compare the listing with the output of a target.

        Args:
            target: The target.
            thorough: Look for former versions of recordings also where all that is listed is stored.
            parallel_map: Calls a function for many shards.

        Returns:
            The inventory of the output, and the backlog.
        """
        inventory = target.store.read(parallel_map=parallel_map)
        listed = self.listing.recordings
        former = former_versions(listed, inventory, target.store, thorough=thorough, parallel_map=parallel_map)
        return inventory, Backlog.of(listed, former, inventory, retry_failed=self.config.retry_failed)


def _refuse_unequal_windows(settings: Sequence[Settings]) -> None:
    """Raise RequestError where windows of the models would begin or end at different times."""
    first, *others = settings
    for other in others:
        one, two = first.windows, other.windows
        for option, samples, other_samples in (("--window-s", one.length, two.length), ("--hop-s", one.hop, two.hop)):
            if samples * two.rate_hz != other_samples * one.rate_hz:
                raise RequestError(
                    f"{option}: {first.model.name} would have {samples / one.rate_hz:g} s, {other.model.name} "
                    f"{other_samples / two.rate_hz:g} s; give a length that is a whole number of samples at "
                    f"{one.rate_hz} and {two.rate_hz} Hz"
                )

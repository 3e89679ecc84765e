"""Names of the poolings over the windows of a recording."""

from embedding.config import did_you_mean
from embedding.errors import RequestError

POOLINGS = ("mean", "max", "std", "sequence")


def parse_poolings(text: str) -> tuple[str, ...]:
    """Return the names in a text like ``mean+max``.

    Raises:
        RequestError: A name is unknown, is repeated, or cannot be joined with others.
    """
    poolings = tuple(text.split("+"))
    for name in poolings:
        if name not in POOLINGS:
            raise RequestError(f"--pooling: {name!r} is not one of {', '.join(POOLINGS)}{did_you_mean(name, POOLINGS)}")
    if len(set(poolings)) < len(poolings):
        raise RequestError(f"--pooling: {text!r} names a pooling twice")
    if "sequence" in poolings and len(poolings) > 1:
        raise RequestError("--pooling: sequence keeps every window, and cannot be joined with other poolings")
    return poolings

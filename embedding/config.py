"""Every option of the embedding job: its default, its unit, its help and its check, each written once.

The command line (`jobs/embed.py`), the YAML file of ``--config`` and ``run.json`` are all made from
:class:`EmbedConfig`, so none of them can disagree with another.
"""

import dataclasses
import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from embedding.errors import RequestError
from embedding.schema.targets import MOST_TARGETS

RANDOM_CHECKPOINT = "random"
AUTO = "auto"
LAST, ALL = "last", "all"  # layers
MODEL_FOLDER = "model="  # begins the name of a model's folder, which readers of Parquet take for a column `model`
GPU_PRECISIONS = ("tf32", "fp16")  # that CPUs do not compute in


def _text(name: str, value: object) -> str:
    if not isinstance(value, str) or not value:
        raise RequestError(f"{name}: expected a text, got {value!r}")
    return value


def _texts(name: str, value: object) -> tuple[str, ...]:
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list | tuple) or not items:
        raise RequestError(f"{name}: expected one or more texts, got {value!r}")
    return tuple(_text(name, item) for item in items)


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise RequestError(f"{name}: expected true or false, got {value!r}")
    return value


def _choice(*choices: str) -> Callable[[str, object], str]:
    def parse(name: str, value: object) -> str:
        if value not in choices:
            raise RequestError(f"{name}: {value!r} is not one of {', '.join(choices)}{nearest(str(value), choices)}")
        return str(value)

    parse.choices = choices  # type: ignore[attr-defined] — shown by --help
    return parse


def _number(kind: type, low: float, high: float = float("inf"), *, auto: bool = False) -> Callable[[str, object], Any]:
    """A parser of numbers in ``(low, high]``; ``low`` itself belongs to the range when it is an integer."""
    what = "a whole number" if kind is int else "a number"

    def parse(name: str, value: object) -> Any:
        if auto and value == AUTO:
            return AUTO
        try:
            number = kind(str(value))
        except ValueError:
            expected = f"{what} or {AUTO!r}" if auto else what
            raise RequestError(f"{name}: expected {expected}, got {value!r}") from None
        # `not (…)` also refuses NaN, which fails every comparison.
        if not (low <= number <= high) or (kind is float and number <= low and low == 0 and high == float("inf")):
            bound = f"above {low:g}" if kind is float and high == float("inf") else f"at least {low:g}"
            limit = "" if high == float("inf") else f" and at most {high:g}"
            raise RequestError(f"{name}: must be {bound}{limit}, got {value}")
        return number

    return parse


def _layers(name: str, value: object) -> str | tuple[int, ...]:
    if value in (LAST, ALL):
        return str(value)
    numbers = value if isinstance(value, list | tuple) else str(value).split(",")
    try:
        return tuple(int(str(number)) for number in numbers)
    except ValueError:
        raise RequestError(f"{name}: expected last, all, or numbers like 0,6,-1, got {value!r}") from None


def _gpus(name: str, value: object) -> float:
    number = _number(float, 0)(name, value)
    if number > 1 and number % 1:  # of infinity not a number, which counts as true
        raise RequestError(f"{name}: a fraction of one GPU, or whole GPUs, got {value}")
    return number


def _option(
    parse: Callable[[str, object], Any],
    help: str,  # noqa: A002 — argparse calls it so, and it is passed on to argparse
    *,
    metavar: str | None = None,
    default_text: str | None = None,
    **kwargs: Any,
) -> Any:
    choices = getattr(parse, "choices", None)
    metavar = metavar or ("{" + ",".join(choices) + "}" if choices else None)
    several = parse is _texts
    metadata = {"parse": parse, "help": help, "metavar": metavar, "default_text": default_text, "several": several}
    return field(metadata=metadata, **kwargs)


@dataclass(frozen=True, kw_only=True)
class EmbedConfig:
    """A checked request. Build it with :func:`make_config`, which runs every option's own check."""

    input: tuple[str, ...] = _option(
        _texts,
        "recordings: a directory (recursive), a glob, a file, an s3://bucket/prefix, "
        "or a manifest (.csv or .parquet with a column 'file'); several may be given",
        metavar="PATH",
    )
    output: str = _option(
        _text,
        "directory or s3:// prefix for embeddings/, failures/, run.json and report.json",
        metavar="PATH",
    )
    model: tuple[str, ...] = _option(
        _texts,
        "avex model name; of several each gets OUTPUT/model=NAME, and recordings are decoded once for all",
        metavar="NAME",
        default=("esp_aves2_sl_beats_all",),
        default_text="esp_aves2_sl_beats_all",
    )
    checkpoint: tuple[str, ...] | None = _option(
        _texts,
        "path or URI of weights to use instead of the model's own; the word 'random' means seeded random "
        "weights, for trials without a download; of several models each needs its own, in their order",
        metavar="PATH",
        default=None,
        default_text="the model's own, from the Hugging Face hub",
    )
    window_s: float | None = _option(
        _number(float, 0),
        "window length in seconds",
        metavar="SECONDS",
        default=None,
        default_text="the model's native length",
    )
    hop_s: float | None = _option(
        _number(float, 0),
        "seconds from the start of one window to the start of the next",
        metavar="SECONDS",
        default=None,
        default_text="the window length",
    )
    tail: str = _option(
        _choice("pad", "drop"),
        "last, incomplete window of a recording: pad it with zeros, or drop it",
        default="pad",
    )
    pooling: str = _option(
        _choice("mean", "max", "cls"),
        "over a window's tokens or feature map; cls only where the model has such a token",
        default="mean",
    )
    layers: str | tuple[int, ...] = _option(
        _layers,
        "inner layers of which there is a vector, too, each in a column of its name: all, or by number, like 0,6,-1; "
        "last: of none, only what the model ends in; with a negative number in front, --layers=-2,-1",
        metavar="LAYERS",
        default=LAST,
    )
    predict: int | None = _option(
        _number(int, 1),
        "the K likeliest labels of each window and their scores, from the same pass, of models with a classifier",
        metavar="K",
        default=None,
        default_text="no predictions",
    )
    mask_padding: bool = _option(
        _flag, "leave zero-padding out of attention and mean, where the model can (BEATs)", default=False
    )
    device: str = _option(
        _choice(AUTO, "cpu", "cuda"), "where the encoder runs; auto takes GPUs when there are any", default=AUTO
    )
    precision: str = _option(
        _choice("fp32", "bf16", "tf32", "fp16"),
        "arithmetic of the encoder; bf16 is up to twice as fast where CPU or GPU have it; tf32 and fp16 are for GPUs "
        "only, fp16 for those without bf16 (T4)",
        default="fp32",
    )
    batch_size: int | str = _option(
        _number(int, 1, 4096, auto=True),
        "windows per batch handed to an actor; the encoder picks its own micro-batch inside; auto: seconds of work",
        metavar="WINDOWS",
        default=AUTO,
    )
    actors: int | str = _option(
        _number(int, 1, auto=True),
        "encoder actors in the pool; auto: one per GPU, or as many as the CPUs carry",
        metavar="N",
        default=AUTO,
    )
    gpus_per_actor: float = _option(
        _gpus,
        "GPUs that an encoder actor takes: a fraction, so that several share one, or a whole number",
        metavar="N",
        default=1.0,
    )
    limit: int | None = _option(
        _number(int, 1), "only the first N recordings", metavar="N", default=None, default_text="all of them"
    )
    dry_run: bool = _option(_flag, "list, count and estimate; write nothing", default=False)
    retry_failed: bool = _option(_flag, "try recordings again that a former run recorded as failed", default=False)
    max_failure_rate: float | None = _option(
        _number(float, 0, 1),
        "share of recordings (0 to 1) that may fail before the exit code is 1; without this option one recording of "
        "several may fail, too",
        metavar="SHARE",
        default=None,
        default_text="0.05",
    )
    shard_rows: int | str = _option(
        _number(int, 1, auto=True),
        "rows per Parquet shard; auto: about 1/256 of the work, at least 256 and at most 32768 rows, so that "
        "an interruption costs little",
        metavar="ROWS",
        default=AUTO,
    )
    verbose: bool = _option(_flag, "show what Ray and avex log", default=False)

    def per_model(self) -> "list[EmbedConfig]":
        """The same request for each model alone; of several, each with its folder of the output."""
        if len(self.model) == 1:
            return [self]
        checkpoints = [None] * len(self.model) if self.checkpoint is None else [(each,) for each in self.checkpoint]
        if self.checkpoint == (RANDOM_CHECKPOINT,):
            checkpoints *= len(self.model)
        return [
            dataclasses.replace(
                self, model=(name,), checkpoint=checkpoint, output=f"{self.output.rstrip('/')}/{MODEL_FOLDER}{name}"
            )
            for name, checkpoint in zip(self.model, checkpoints, strict=True)
        ]


def _check_models(config: EmbedConfig) -> EmbedConfig:
    n_models, n_checkpoints = len(config.model), len(config.checkpoint or config.model)
    if len(set(config.model)) < n_models:
        raise RequestError(f"--model: {', '.join(config.model)} names the same twice")
    if n_models > MOST_TARGETS:
        raise RequestError(f"--model: {n_models} models, and a run takes {MOST_TARGETS} at most")
    if n_checkpoints != n_models and config.checkpoint != (RANDOM_CHECKPOINT,):
        raise RequestError(
            f"--checkpoint: {n_checkpoints} for {n_models} models; give one for each, in their order, or leave all out"
        )
    if config.device == "cpu":
        refuse_on_cpus(config.precision)
    return config


def refuse_on_cpus(precision: str) -> None:
    """Raise RequestError for a precision that CPUs do not compute in."""
    if precision in GPU_PRECISIONS:
        raise RequestError(f"--precision: only GPUs compute in {precision}; on CPUs use fp32 or bf16")


def option_name(field_name: str) -> str:
    """``window_s`` → ``--window-s``."""
    return "--" + field_name.replace("_", "-")


def at_layer(name: str, layer: str | None) -> str:
    """Return the name of results that are made from the vectors of an inner layer."""
    return name if layer is None else f"{name}@{layer}"


def nearest(word: str, words: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` for the closest of ``words``, or an empty text."""
    close = difflib.get_close_matches(word, list(words), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def make_config(values: Mapping[str, object]) -> EmbedConfig:
    """A checked config from raw values by field name.

    Raises:
        RequestError: an unknown or missing option, or a value its option does not take.
    """
    fields = {f.name: f for f in dataclasses.fields(EmbedConfig)}
    checked: dict[str, Any] = {}
    for name, value in values.items():
        if name not in fields:
            known = [option_name(known) for known in fields]
            raise RequestError(f"unknown option {option_name(name)}{nearest(option_name(name), known)}")
        if value is not None:
            checked[name] = fields[name].metadata["parse"](option_name(name), value)
    for name, f in fields.items():
        if f.default is dataclasses.MISSING and name not in checked:
            raise RequestError(f"{option_name(name)} is required; see --help")
    return _check_models(EmbedConfig(**checked))

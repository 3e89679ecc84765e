"""The options of the embedding job, with default, unit, help and check of each option in one place.

The command line (`jobs/embed.py`), the YAML file of ``--config`` and ``run.json`` are all derived from
:class:`EmbedConfig`, so they always agree.
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
LAST_LAYER, ALL_LAYERS = "last", "all"
MODEL_FOLDER = "model="  # prefix of the name of a model's folder; readers of Parquet make a column `model` of it
GPU_PRECISIONS = ("tf32", "fp16")  # precisions that only GPUs support
CPU_PRECISIONS = ("int8",)  # precisions that only CPUs support


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
            raise RequestError(
                f"{name}: {value!r} is not one of {', '.join(choices)}{did_you_mean(str(value), choices)}"
            )
        return str(value)

    parse.choices = choices  # type: ignore[attr-defined] — for --help
    return parse


def _number(kind: type, low: float, high: float = float("inf"), *, auto: bool = False) -> Callable[[str, object], Any]:
    """Return a parser of numbers from ``low`` to ``high``.

    The range includes both limits, except that a float above 0 without an upper limit must not be 0.
    """
    noun = "a whole number" if kind is int else "a number"

    def parse(name: str, value: object) -> Any:
        if auto and value == AUTO:
            return AUTO
        try:
            number = kind(str(value))
        except ValueError:
            expected = f"{noun} or {AUTO!r}" if auto else noun
            raise RequestError(f"{name}: expected {expected}, got {value!r}") from None
        # `not (…)` also refuses NaN, which fails every comparison.
        if not (low <= number <= high) or (kind is float and number <= low and low == 0 and high == float("inf")):
            bound = f"above {low:g}" if kind is float and high == float("inf") else f"at least {low:g}"
            limit = "" if high == float("inf") else f" and at most {high:g}"
            raise RequestError(f"{name}: must be {bound}{limit}, got {value}")
        return number

    return parse


def _layers(name: str, value: object) -> str | tuple[int, ...]:
    if value in (LAST_LAYER, ALL_LAYERS):
        return str(value)
    numbers = value if isinstance(value, list | tuple) else str(value).split(",")
    try:
        return tuple(int(str(number)) for number in numbers)
    except ValueError:
        raise RequestError(f"{name}: expected last, all, or numbers like 0,6,-1, got {value!r}") from None


def _gpus(name: str, value: object) -> float:
    number = _number(float, 0)(name, value)
    if number > 1 and number % 1:  # for infinity the remainder is NaN, which counts as true
        raise RequestError(f"{name}: a fraction of one GPU, or whole GPUs, got {value}")
    return number


def _option(
    parse: Callable[[str, object], Any],
    help: str,  # noqa: A002 — the name that argparse uses
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
    """A checked request, made by :func:`make_config`, which runs the check of every option.

    Each field is an option; its help text is the description.
    """

    input: tuple[str, ...] = _option(
        _texts,
        "recordings: one or more directories (recursive), globs, files, s3://bucket/prefix URIs, "
        "or manifests (.csv or .parquet with a column 'file')",
        metavar="PATH",
    )
    output: str = _option(
        _text,
        "directory or s3:// prefix for embeddings/, failures/, run.json and report.json",
        metavar="PATH",
    )
    model: tuple[str, ...] = _option(
        _texts,
        "one or more avex model names; several models decode recordings once, and each writes to OUTPUT/model=NAME",
        metavar="NAME",
        default=("esp_aves2_sl_beats_all",),
        default_text="esp_aves2_sl_beats_all",
    )
    checkpoint: tuple[str, ...] | None = _option(
        _texts,
        "path or URI of weights to use instead of the model's own; the word 'random' means seeded random "
        "weights, for trials without a download; with several models one checkpoint for each, in the order of --model",
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
    speed: float = _option(
        _number(float, 0.001, 1000),
        "play recordings slower or faster before the model hears them; 0.1 makes ultrasound ten times slower "
        "and lower; lengths and times of windows stay those of the recording",
        metavar="FACTOR",
        default=1.0,
        default_text="1, as recorded",
    )
    tail: str = _option(
        _choice("pad", "drop"),
        "last, incomplete window of a recording: pad it with zeros, or drop it",
        default="pad",
    )
    pooling: str = _option(
        _choice("mean", "max", "cls"),
        "pooling over the tokens or the feature map of a window; cls only for models with a CLS token",
        default="mean",
    )
    layers: str | tuple[int, ...] = _option(
        _layers,
        "inner layers whose vectors are stored, too, each layer in a column of its name: all, or numbers like 0,6,-1; "
        "last: only the final vector of the model; if the first number is negative, write --layers=-2,-1",
        metavar="LAYERS",
        default=LAST_LAYER,
    )
    predict: int | None = _option(
        _number(int, 1),
        "store the K most likely labels of each window and their scores; for models with a classifier",
        metavar="K",
        default=None,
        default_text="no predictions",
    )
    detect: str | None = _option(
        _text,
        "find the labels of this probe in the same pass, as jobs.detect --probe PROBE does: a probe of jobs.probe in "
        "OUTPUT, or a .npz of weights; for runs with one model",
        metavar="PROBE",
        default=None,
        default_text="no detections",
    )
    mask_padding: bool = _option(
        _flag, "exclude zero-padding from attention and mean, where the model can (BEATs)", default=False
    )
    device: str = _option(
        _choice(AUTO, "cpu", "cuda"), "where the encoder runs; auto: on GPUs if the cluster has any", default=AUTO
    )
    precision: str = _option(
        _choice("fp32", "bf16", "tf32", "fp16", "int8"),
        "arithmetic of the encoder; bf16 is up to twice as fast where the CPU or GPU supports it; tf32 and fp16 need a "
        "GPU, and fp16 is for GPUs without bf16 (T4); int8 is for BEATs on CPUs with VNNI and without bf16",
        default="fp32",
    )
    min_agreement: float = _option(
        _number(float, 0, 1),
        "least cosine (0 to 1) between vectors of a reduced --precision and vectors of fp32, measured on the first "
        "windows of a run; below it the run ends with exit code 2; 0: do not measure",
        metavar="COSINE",
        default=0.995,
    )
    batch_size: int | str = _option(
        _number(int, 1, 4096, auto=True),
        "windows per batch that an actor receives; the encoder divides a batch into micro-batches; auto: some seconds "
        "of work",
        metavar="WINDOWS",
        default=AUTO,
    )
    actors: int | str = _option(
        _number(int, 1, auto=True),
        "encoder actors in the pool; auto: one per GPU, or as many as the CPUs can run",
        metavar="N",
        default=AUTO,
    )
    gpus_per_actor: float = _option(
        _gpus,
        "GPUs per encoder actor: a fraction if several actors share a GPU, or a whole number",
        metavar="N",
        default=1.0,
    )
    limit: int | None = _option(
        _number(int, 1), "only the first N recordings", metavar="N", default=None, default_text="all recordings"
    )
    dry_run: bool = _option(_flag, "list, count and estimate; write nothing", default=False)
    retry_failed: bool = _option(_flag, "retry recordings that failed in a former run", default=False)
    max_failure_rate: float | None = _option(
        _number(float, 0, 1),
        "maximum share of failed recordings (0 to 1) for exit code 0; without this option one failure among several "
        "recordings is also allowed",
        metavar="SHARE",
        default=None,
        default_text="0.05",
    )
    shard_rows: int | str = _option(
        _number(int, 1, auto=True),
        "rows per Parquet shard; auto: about 1/256 of the work, from 256 to 32768 rows, so that an interruption loses "
        "little work",
        metavar="ROWS",
        default=AUTO,
    )
    verbose: bool = _option(_flag, "show log messages of Ray and avex", default=False)

    def per_model(self) -> "list[EmbedConfig]":
        """Return the request of each model; with several models, each request has its own folder of the output."""
        if len(self.model) == 1:
            return [self]
        checkpoints = [None] * len(self.model) if self.checkpoint is None else [(uri,) for uri in self.checkpoint]
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
        raise RequestError(f"--model: {', '.join(config.model)} names a model twice")
    if config.detect is not None and n_models > 1:
        raise RequestError("--detect: a probe fits one model, and this run has several: run jobs.detect on each output")
    if n_models > MOST_TARGETS:
        raise RequestError(f"--model: {n_models} models; a run takes at most {MOST_TARGETS}")
    if n_checkpoints != n_models and config.checkpoint != (RANDOM_CHECKPOINT,):
        raise RequestError(
            f"--checkpoint: {n_checkpoints} for {n_models} models; name one for each model, in the order of --model, "
            "or none"
        )
    if config.device != AUTO:
        refuse_precision(config.precision, config.device)
    return config


def refuse_precision(precision: str, device: str) -> None:
    """Refuse a precision that a device does not support.

    Args:
        precision: Value of ``--precision``.
        device: cpu or cuda.

    Raises:
        RequestError: The device does not compute in the precision.
    """
    if device == "cpu" and precision in GPU_PRECISIONS:
        raise RequestError(f"--precision: only GPUs compute in {precision}; on CPUs use fp32 or bf16")
    if device == "cuda" and precision in CPU_PRECISIONS:
        raise RequestError(f"--precision: only CPUs compute in {precision}; use bf16, or choose --device cpu")


def option_name(field_name: str) -> str:
    """Return the name of an option on the command line: ``window_s`` → ``--window-s``."""
    return "--" + field_name.replace("_", "-")


def name_at_layer(name: str, layer: str | None) -> str:
    """Return the name of a result made from the vectors of an inner layer; ``layer`` is None for the final vectors."""
    return name if layer is None else f"{name}@{layer}"


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """Return a text like `` (did you mean 'x'?)`` with the most similar of ``words``; empty if none is similar."""
    close = difflib.get_close_matches(word, list(words), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def make_config(values: Mapping[str, object]) -> EmbedConfig:
    """Return a checked request.

    Args:
        values: Raw values by field name; None is the default.

    Raises:
        RequestError: An option is unknown or missing, or has an invalid value.
    """
    fields = {f.name: f for f in dataclasses.fields(EmbedConfig)}
    checked: dict[str, Any] = {}
    for name, value in values.items():
        if name not in fields:
            known = [option_name(known) for known in fields]
            raise RequestError(f"unknown option {option_name(name)}{did_you_mean(option_name(name), known)}")
        if value is not None:
            checked[name] = fields[name].metadata["parse"](option_name(name), value)
    for name, f in fields.items():
        if f.default is dataclasses.MISSING and name not in checked:
            raise RequestError(f"{option_name(name)} is required; see --help")
    return _check_models(EmbedConfig(**checked))

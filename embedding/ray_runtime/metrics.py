"""Metrics of a run for Prometheus: counters that every worker process keeps through Ray, see docs/cluster.md.

``deploy/grafana.json`` draws the metrics; a test scrapes them under these names.
"""

from functools import cache

from ray.util.metrics import Counter, Histogram

# Counters of report.Counters, and what they are called outside.
COUNTERS = {
    "recordings": ("avex_batch_recordings", "Recordings that are finished"),
    "read_bytes": ("avex_batch_read_bytes", "Bytes of the recordings that were decoded"),
    "audio_s": ("avex_batch_decoded_audio_seconds", "Seconds of audio decoded"),
    "windows_encoded": ("avex_batch_encoded_windows", "Windows encoded"),
    "audio_encoded_s": ("avex_batch_encoded_audio_seconds", "Seconds of audio encoded"),
    "windows_written": ("avex_batch_written_windows", "Windows written to shards"),
    "shards": ("avex_batch_written_shards", "Shards written"),
}
FAILURES = "avex_batch_failures"
BUSY = "avex_batch_busy_seconds"
BATCH_FILL = "avex_batch_batch_fill"


def add(stage: str, busy_s: float, **counts: float) -> None:
    """The same as ``report.Counters.add``."""
    _counter(BUSY, "Seconds of work, by stage", "stage").inc(busy_s, {"stage": stage})
    for name, count in counts.items():
        if count > 0 and name in COUNTERS:
            _counter(*COUNTERS[name]).inc(count)


def failed(kind: str) -> None:
    """Count a recording that failed."""
    _counter(FAILURES, "Recordings that failed, by kind", "kind").inc(1, {"kind": kind})


def batch_filled(share: float) -> None:
    """Record the share (0 to 1) of a full batch's windows that a batch has at its encoder."""
    _batch_fill().observe(share)


@cache
def _counter(name: str, description: str, *tags: str) -> Counter:
    return Counter(name, description, tags)


@cache
def _batch_fill() -> Histogram:
    return Histogram(BATCH_FILL, "Windows in a batch over what it could hold", [0.25, 0.5, 0.75, 0.9, 1.0])

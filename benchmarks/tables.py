"""Medians, spreads and ratios of measurements, and their Markdown."""

import argparse
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import psutil

RESULTS = Path(__file__).resolve().parent / "results"
# Flags in /proc/cpuinfo that decide the speed of encoders.
PRODUCTS = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx_vnni": "AVX-VNNI",
    "avx512_vnni": "AVX-512-VNNI",
    "avx512_bf16": "AVX-512-bf16",
    "amx_bf16": "AMX",
}
VERSIONED = ("avex", "ray", "torch", "openvino", "soundfile", "soxr", "pyarrow")


@dataclass(frozen=True)
class Spread:
    """Median and range of several measurements."""

    median: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(statistics.median(values), min(values), max(values), len(values))

    def text(self, pattern: str = ".1f") -> str:
        """Return ``12.3 (11.9–13.0)``; for a single measurement only its value."""
        if self.n == 1:
            return format(self.median, pattern)
        return f"{self.median:{pattern}} ({self.low:{pattern}}–{self.high:{pattern}})"


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> Spread:
    """Return the ratios of both sequences per round, which cancels the drift of the machine between rounds."""
    return Spread.of([a / b for a, b in zip(numerators, denominators, strict=True)])


def slopes(short: Sequence[float], long: Sequence[float], difference: float) -> list[float]:
    """Return the additional time per additional unit of work, per round.

    Args:
        short: Times of the short archive.
        long: Times of the long archive.
        difference: Additional work of the long archive.

    Raises:
        ValueError: The long archive took no more time, so the measurements are noise.
    """
    result = [(b - a) / difference for a, b in zip(short, long, strict=True)]
    if min(result) <= 0:
        raise ValueError(f"the long archive took no longer than the short one: {list(short)} s, {list(long)} s")
    return result


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table; columns of numbers are aligned right."""
    numeric = [all(re.match(r"[-–\d(≥≤]|$", row[i]) for row in rows) for i in range(len(columns))]
    lines = [columns, ["---:" if right else "---" for right in numeric], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def verdict(value: float, goal: float, pattern: str = ".2f") -> str:
    return f"{value:{pattern}}, goal {goal:{pattern}}: {'reached' if value >= goal else 'missed'}"


def hardware() -> str:
    """Return CPU, cores, memory and GPUs of this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = psutil.virtual_memory().total / (1 << 30)
    parts = [f"{_cpu()}, {cores} cores", f"{memory:.0f} GiB of memory", *([gpu] if (gpu := _gpu()) else [])]
    return ", ".join(parts)


def _cpu() -> str:
    """Return the name of the CPU, and which instructions for products it has: two CPUs may have one name."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    name = re.search(r"^model name\s*: (.+)$", text, re.M)
    if name is None:
        return platform.processor() or platform.machine()
    family = [found[1] for key in ("cpu family", "model") if (found := re.search(rf"^{key}\s*: (.+)$", text, re.M))]
    flags = re.search(r"^flags\s*: (.+)$", text, re.M)
    has = set(flags[1].split()) if flags else set()
    products = [shown for flag, shown in PRODUCTS.items() if flag in has]
    return f"{name[1].strip()} (family {' model '.join(family)}: {', '.join(products) or 'no AVX2'})"


def _gpu() -> str:
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip().replace("\n", ", ")


def versions() -> str:
    return ", ".join(
        [f"Python {platform.python_version()}", *(f"{name} {metadata.version(name)}" for name in VERSIONED)]
    )


def command_line() -> str:
    """Return the command line of this benchmark, without the paths of this machine."""
    words = [Path(word).name if os.path.isabs(word) else word for word in sys.argv[1:]]  # noqa: PTH117
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words])


def page(doc: str | None, table: str, notes: Sequence[str]) -> str:
    """Return the whole result: title (first line of the benchmark's docstring), command, machine, table, notes."""
    title = (doc or "").partition("\n")[0].rstrip(".")
    date = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    head = [f"# {title}", f"`{command_line()}`, {date}, on {hardware()}; {versions()}."]
    return "\n\n".join([*head, table, *(["\n".join(f"- {note}" for note in notes)] if notes else []), ""])


def publish(name: str, text: str, *, save: bool) -> None:
    """Print a result, and with ``save`` write it to ``results/name.md``."""
    if save:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.md").write_text(text, encoding="utf-8")
    sys.stdout.write(text)


def add_options(parser: argparse.ArgumentParser, rounds: int) -> None:
    """Add the options that every benchmark has."""
    parser.add_argument(
        "--small",
        action="store_true",
        help="a run of about a minute that shows that the benchmark works; its figures mean nothing",
    )
    parser.add_argument("--rounds", type=int, default=rounds, help="default: %(default)s; always 1 with --small")
    parser.add_argument("--save", action="store_true", help="also write the table to benchmarks/results/")

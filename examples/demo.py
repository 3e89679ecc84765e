"""jobs.embed on twelve synthetic clips: four tones, three takes each, 3 s at 16 kHz in noise at 15 dB SNR.

The clips are embedded with both architectures. BEATs has seeded random weights. EfficientNet has a checkpoint whose
batch norms have statistics of noise; without statistics its vectors would be zero except for rounding. Nothing is
downloaded. Then the files are listed, the norms of the vectors are shown by tone, and a page is written.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import soundfile as sf
from rich.console import Console
from rich.table import Table

from embedding.text import size
from jobs.embed import main as embed
from jobs.report import main as report

DEMO = Path("demo")
RATE_HZ = 16_000
TONES_HZ = (220, 440, 880, 1760)
TAKES = 3
CLIP_S = 3.0
SNR_DB = 15.0
BEATS, EFFICIENTNET = MODELS = ("esp_aves2_sl_beats_all", "esp_aves2_effnetb0_all")


def write_clips(folder: Path) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    t = np.arange(round(CLIP_S * RATE_HZ)) / RATE_HZ
    for frequency_hz in TONES_HZ:
        for take in range(TAKES):
            tone = 0.5 * np.sin(2 * np.pi * frequency_hz * t)
            noise = rng.standard_normal(len(t)) * np.sqrt(np.mean(tone**2) / 10 ** (SNR_DB / 10))
            sf.write(folder / f"tone_{frequency_hz:04d}_hz_{take}.wav", (tone + noise).astype(np.float32), RATE_HZ)


def write_checkpoint(model: str, folder: Path) -> Path:
    """Write a checkpoint of seeded weights in a separate process, since importing avex takes a gigabyte."""
    path = folder / f"{model}.safetensors"
    program = Path(__file__).parent.parent / "benchmarks" / "weights.py"
    subprocess.run([sys.executable, program, model, path, folder], check=True, stdout=subprocess.DEVNULL)
    return path


def print_norms(console: Console, output: Path) -> None:
    windows = pq.read_table(output / "embeddings")
    vectors = np.stack(windows["embedding"].to_numpy())
    norms = np.linalg.norm(vectors, axis=1)
    tones = np.array([Path(file).name.removesuffix(".wav")[5:9] for file in windows["file"].to_pylist()])
    table = Table(
        "tone", "windows", "norm min", "median", "max", title=f"{output}: {vectors.shape[0]} × {vectors.shape[1]}"
    )
    for tone in np.unique(tones):
        tone_norms = norms[tones == tone]
        table.add_row(
            f"{int(tone)} Hz",
            str(len(tone_norms)),
            *(f"{function(tone_norms):.4g}" for function in (np.min, np.median, np.max)),
        )
    console.print(table)


def main() -> int:
    console = Console()
    shutil.rmtree(DEMO, ignore_errors=True)
    write_clips(DEMO / "clips")
    checkpoints = {BEATS: "random", EFFICIENTNET: str(write_checkpoint(EFFICIENTNET, DEMO / "weights"))}
    for model, checkpoint in checkpoints.items():
        output = DEMO / model
        code = embed(
            [
                *("--input", str(DEMO / "clips"), "--output", str(output), "--model", model),
                *("--checkpoint", checkpoint, "--window-s", "1.0", "--hop-s", "0.5"),
            ]
        )
        if code:
            return code
        console.print()
    console.print("files:")
    for path in sorted(path for path in DEMO.rglob("*") if path.is_file() and not {"clips", "weights"} & {*path.parts}):
        console.print(f"  {path} ({size(path.stat().st_size)})", highlight=False)
    for model in MODELS:
        print_norms(console, DEMO / model)
    return report([str(DEMO / MODELS[0]), "--html", str(DEMO / "report.html")])


if __name__ == "__main__":
    sys.exit(main())

# %% [markdown]
# # Tones: vectors, pictures, files
#
# Twelve clips of four tones go through the whole system: windows, vectors, norms, a UMAP, the sequence of windows of
# one clip, and saved files that are read again. Run it as a script (`python examples/tones.py FOLDER`) or cell by cell,
# in any editor that supports `# %%`. Nothing is downloaded. The weights are random, so the pictures carry no meaning.

# %%
import sys
from pathlib import Path

import numpy as np
import plotly.express as px
import pyarrow.parquet as pq
import soundfile as sf
import umap

from jobs.embed import main as embed
from jobs.pool import main as pool

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "demo/tones")
rate_hz = 16_000
tones_hz = (220, 440, 880, 1760)

# %% [markdown]
# ## Clips
# Each tone has three takes of three seconds, in noise at 15 dB SNR.

# %%
clips = folder / "clips"
clips.mkdir(parents=True, exist_ok=True)
rng = np.random.default_rng(0)
t = np.arange(3 * rate_hz) / rate_hz
for frequency_hz in tones_hz:
    for take in range(3):
        tone = 0.5 * np.sin(2 * np.pi * frequency_hz * t)
        noise = rng.standard_normal(len(t)) * np.sqrt(np.mean(tone**2) / 10**1.5)
        sf.write(clips / f"{frequency_hz:04d}_{take}.wav", (tone + noise).astype(np.float32), rate_hz)

# %% [markdown]
# ## Windows and vectors
# Windows have one second, and start every half second. Each window has one vector. The same command works for a million
# clips.

# %%
output = folder / "embeddings-of-tones"
code = embed(
    [
        *("--input", str(clips), "--output", str(output), "--window-s", "1", "--hop-s", "0.5"),
        *("--model", "esp_aves2_sl_beats_all", "--checkpoint", "random"),
    ]
)
assert code == 0

# %%
windows = pq.read_table(output / "embeddings").sort_by([("file", "ascending"), ("window_index", "ascending")])
vectors = np.stack(windows["embedding"].to_numpy())
tone_of = np.array([int(Path(file).stem[:4]) for file in windows["file"].to_pylist()])
print(f"{len(windows)} windows of {len(set(windows['file'].to_pylist()))} clips, vectors of {vectors.shape[1]} numbers")
assert vectors.shape == (12 * 6, 768)

# %% [markdown]
# ## Norms
# An unusually large or small norm is often silence, clipping or a broken microphone.

# %%
norms = np.linalg.norm(vectors, axis=1)
for frequency_hz in tones_hz:
    tone_norms = norms[tone_of == frequency_hz]
    print(f"{frequency_hz:5} Hz: norm {tone_norms.min():.2f} to {tone_norms.max():.2f}")

# %% [markdown]
# ## UMAP
# UMAP puts similar vectors close together. `python -m jobs.report OUTPUT --html page.html` draws this map for
# any output.

# %%
points = umap.UMAP(n_neighbors=10, random_state=0, n_jobs=1).fit_transform(vectors)
picture = px.scatter(
    x=points[:, 0],
    y=points[:, 1],
    color=[f"{frequency_hz} Hz" for frequency_hz in tone_of],
    hover_name=[Path(file).name for file in windows["file"].to_pylist()],
    title="Windows of tones",
)
picture.write_html(folder / "umap.html")
print(f"UMAP: {folder / 'umap.html'}")

# %% [markdown]
# ## The windows of one clip, in order
# Pooling with `sequence` keeps all windows of a clip in one row, for models of time series, or to see changes within a
# recording.

# %%
assert pool([str(output), "--pooling", "sequence"]) == 0
sequences = pq.read_table(output / "recordings" / "sequence").sort_by("file")
first = np.stack(sequences["embedding"][0].values.to_numpy(zero_copy_only=False))
assert np.array_equal(first, vectors[:6])
distances = np.linalg.norm(np.diff(first, axis=0), axis=1)
print(f"{Path(sequences['file'][0].as_py()).name}: distances between windows {distances.round(3).tolist()}")

# %% [markdown]
# ## Save and reload
# The vectors are already saved: any tool reads the Parquet files. Here NumPy saves a copy.

# %%
np.save(folder / "vectors.npy", vectors)
assert np.array_equal(np.load(folder / "vectors.npy"), vectors)
again = pq.read_table(output / "embeddings").sort_by([("file", "ascending"), ("window_index", "ascending")])
assert again.equals(windows)
print(f"saved and read again: {folder / 'vectors.npy'}, {output / 'embeddings'}")

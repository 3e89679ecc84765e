"""Files of annotations as Raven, Audacity and opensoundscape write them."""

from pathlib import Path

RAVEN_HEAD = "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\tHigh Freq (Hz)"


def raven_table(path: Path, *rows: tuple[float, float, str], column: str = "Species", encoding: str = "utf-8") -> Path:
    """Write a selection table with the two views of each selection, as Raven Pro writes them."""
    lines = [f"{RAVEN_HEAD}\t{column}"]
    for number, (start_s, end_s, label) in enumerate(rows, start=1):
        for view in ("Waveform 1", "Spectrogram 1"):
            lines.append(f"{number}\t{view}\t1\t{start_s:.9f}\t{end_s:.9f}\t1200.0\t8000.0\t{label}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(("\r\n".join(lines) + "\r\n").encode(encoding))
    return path


def audacity_track(path: Path, *rows: tuple[float, float, str]) -> Path:
    """Write a label track with a line of frequencies below each label."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{start:.6f}\t{end:.6f}\t{label}\n\\\t900.0\t4000.0\n" for start, end, label in rows))
    return path

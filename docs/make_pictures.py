"""The pictures of the report's page in README: ``python docs/make_pictures.py``.

The vectors are synthetic: a cloud for each species, and a cloud for the wind. Chromium has to be installed.
"""

import csv
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from jobs.detect import main as detect_main  # noqa: E402 — after the path
from jobs.report import main as report_main  # noqa: E402
from tests.support.browser import open_browser  # noqa: E402
from tests.support.pages import DIM, open_page, write_finished_output  # noqa: E402

SPECIES = [
    "Columba palumbus", "Sylvia atricapilla", "Fringilla coelebs", "Parus major", "Phylloscopus collybita",
    "Turdus merula", "Streptopelia turtur", "Erithacus rubecula", "Dendrocopos major", "Cuculus canorus", "Strix aluco",
]  # fmt: skip
SITES = ["Auwald", "Heide", "Moor", "Streuobst"]
HOURS = [3, 4, 4, 5, 5, 6, 7, 12, 20, 21]
# Hours at which some species call; the others call at any of HOURS.
HOURS_OF = {"Strix aluco": [21, 22, 23, 0, 1, 2], "Turdus merula": [3, 4, 4, 5, 20], "Cuculus canorus": [5, 6, 7, 8]}
N_RECORDINGS = 509
WINDOWS_PER_RECORDING = 27
N_POINTS = 5_000  # of the page's default sample
TO_TOP = "section => section.scrollIntoView()"


def make_recordings() -> tuple[dict[str, np.ndarray], dict[str, str], dict[str, np.ndarray]]:
    """Return the vectors and the label of each recording, by its name, and the centre of each label."""
    rng = np.random.default_rng(5)
    centres = dict(zip([*SPECIES, "Wind"], rng.normal(0, 1.2, (len(SPECIES) + 1, DIM)), strict=True))
    recordings, labels = {}, {}
    while len(recordings) < N_RECORDINGS:
        month, day = rng.choice([4, 5]), rng.integers(1, 31)
        label = str(rng.choice(list(centres)))
        hour = rng.choice(HOURS_OF.get(label, HOURS))
        date, time = f"2025{month:02d}{day:02d}", f"{hour:02d}{rng.choice([0, 30]):02d}00"
        name = f"/archive/{rng.choice(SITES)}/{date}_{time}.WAV"
        share_of_call = rng.uniform(0.0, 1.0, (WINDOWS_PER_RECORDING, 1)) ** 0.3
        mixed = share_of_call * centres[label] + (1 - share_of_call) * centres["Wind"]
        vectors = mixed + rng.normal(0, 0.25, mixed.shape)
        if rng.random() < 0.02:
            vectors[3] *= 4  # a microphone that was touched
        recordings[name], labels[name] = vectors.astype(np.float32), label
    return recordings, labels, centres


def main() -> int:
    """Write the pictures."""
    recordings, labels, centres = make_recordings()
    with tempfile.TemporaryDirectory() as folder:
        manifest, page = Path(folder, "labels.csv"), Path(folder, "page.html")
        with manifest.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("file", "label"), *labels.items()])
        write_finished_output(Path(folder, "out"), recordings, [])
        names, vectors = SPECIES, np.stack([centres[name] for name in SPECIES])
        half = 0.6 * (vectors**2).sum(axis=1)  # reached by windows with some three fifths of a call
        np.savez(Path(folder, "species.npz"), weight=vectors, bias=-half, classes=np.array(names))
        detect_main([str(Path(folder, "out")), "--probe", str(Path(folder, "species.npz"))])
        report_main([str(Path(folder, "out")), "--html", str(page), "--manifest", str(manifest)])
        with open_browser() as browser:
            desktop = open_page(browser.new_context(viewport={"width": 1280, "height": 1240}), page).page
            desktop.locator("section.result .figure").first.screenshot(path=ROOT / "docs" / "activity.png")
            desktop.locator("#colour").select_option("label")
            desktop.locator("#map").evaluate(TO_TOP)
            box = desktop.locator("#umap path.point").nth(N_POINTS // 2).bounding_box()
            assert box is not None
            desktop.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
            desktop.locator("#neighbours").wait_for()
            desktop.mouse.move(0, 0)  # away from the point, whose text would hide others
            desktop.locator("#map").evaluate(TO_TOP)
            desktop.screenshot(path=ROOT / "docs" / "report-desktop.png")
            phone = open_page(
                browser.new_context(viewport={"width": 390, "height": 1240}, device_scale_factor=2), page
            ).page
            phone.locator("#time").evaluate(TO_TOP)
            phone.screenshot(path=ROOT / "docs" / "report-phone.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""``jobs.report --html``: the page in a browser."""

import csv
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, expect

from embedding.schema.failures import Failure
from jobs.report import main
from tests.support.browser import CHROMIUM, needs_chromium
from tests.support.pages import DIM, OpenPage, open_page, write_finished_output

# Names that would run a script if the page inserted them as HTML.
SCRIPT = "<script>document.title='hacked'</script>"
IMAGE = "\"'><img src=x onerror=\"document.title='hacked'\">"
CLOSE = "</script><script>document.title='hacked'</script><!--"


@dataclass
class Report:
    """A page with its PNG files, and the data that it was made from.

    Attributes:
        recordings: Vectors of each recording, ``[windows, DIM]``.
        labels: Label of each recording in the manifest.
        html: The page.
        png: The folder of PNG files.
        printed: Lines on the terminal.
    """

    recordings: dict[str, np.ndarray]
    labels: dict[str, str]
    html: Path
    png: Path
    printed: str


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """The report of 40 recordings of three sites, two recordings with hostile names and one silent recording."""
    folder = tmp_path_factory.mktemp("report 'ü'")
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((4, DIM)) * 3
    recordings, labels = {}, {}
    began = datetime(2025, 5, 3, 3, 30)
    for number in range(40):
        site = ("Moor", "Heide", f"{IMAGE[:2]}<b>Wald</b>")[number % 3]
        time = began + timedelta(days=number // 8, hours=number % 8)
        name = f"{time:%Y%m%d_%H%M%S}.WAV" if number % 10 else f"clip {number}.wav"
        file = f"/data/{site}/{name}"
        recordings[file] = centres[number % 4] + rng.standard_normal((6, DIM))
        labels[file] = ("robin", "wren", SCRIPT, "")[number % 4]
    for text in (SCRIPT, CLOSE):
        file = f"/data/Moor/{text.replace('/', '∕')}{IMAGE}.wav"
        recordings[file] = centres[0] + rng.standard_normal((2, DIM))
        labels[file] = CLOSE
    recordings["/data/Heide/silent.wav"] = np.zeros((1, DIM))
    manifest = folder / "a manifest.csv"
    with manifest.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file", "label", IMAGE])
        rows.writerows([name, label, f"{number}{SCRIPT}"] for number, (name, label) in enumerate(labels.items()))
    failures = [
        Failure(f"/data/{CLOSE}", 1, 10, "decode", "corrupt", f"{IMAGE}"),
        Failure("/data/b.wav", 2, 0, "decode", "empty", "no bytes"),
    ]
    write_finished_output(folder / "out", recordings, failures, str(manifest))
    html, png = folder / "pages" / "a page.html", folder / "png"
    arguments = [str(folder / "out"), "--html", str(html), *(["--png", str(png)] if CHROMIUM else [])]
    logged_browser = folder / "chromium"  # logs its requests
    logged_browser.write_text(f'#!/bin/sh\nexec {CHROMIUM} "--log-net-log={folder}/requests.json" "$@"\n')
    logged_browser.chmod(0o755)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("BROWSER_PATH", str(logged_browser))
        lines: list[str] = []
        patched.setattr("embedding.cli.terminal.Terminal.say", lambda _, line: lines.append(line))
        assert main(arguments) == 0
    return Report(recordings, labels, html, png, "\n".join(lines))


@pytest.fixture(scope="module")
def opened(report: Report, browser: Browser) -> Iterator[OpenPage]:
    with browser.new_context(viewport={"width": 1280, "height": 900}) as context:
        yield open_page(context, report.html)


@pytest.fixture(scope="module")
def data(report: Report) -> dict[str, Any]:
    """The data in the page for its program."""
    script = re.search(r'<script type="application/json" id="data">(.*?)</script>', report.html.read_text(), re.DOTALL)
    assert script is not None
    return json.loads(script[1])


def n_windows(report: Report) -> int:
    return sum(map(len, report.recordings.values()))


@needs_chromium
def test_the_page_opens_without_an_error_or_a_request(opened: OpenPage, report: Report) -> None:
    assert opened.errors == []
    assert opened.requests == [report.html.as_uri()]
    assert opened.page.title() == "esp_aves2_effnetb0_all · embeddings"


@needs_chromium
def test_the_counts_are_on_the_page(opened: OpenPage, report: Report) -> None:
    n = len(report.recordings)
    assert opened.page.locator(".tiles dd").all_inner_texts()[:3] == [f"{n}", "2", f"{n_windows(report)}"]
    balance = (
        f"The last run listed {n + 2} recordings: 0 already done + {n} embedded + 2 failed. "
        "Every recording is accounted for."
    )
    assert opened.page.locator("#balance").inner_text() == balance
    assert opened.page.locator("#runs tbody tr").inner_text().split("\t")[:3] == [
        "2025-06-01 18:02 UTC",
        "complete",
        "1 min 15 s",
    ]
    assert "Random weights" in opened.page.locator(".loud").inner_text()
    opened.page.locator("details summary").click()
    assert opened.page.locator("#failed tbody tr").count() == 2


@needs_chromium
def test_every_figure_is_drawn(opened: OpenPage, report: Report) -> None:
    page, n = opened.page, n_windows(report)
    for name in ("umap", "pca"):
        assert page.locator(f"#{name} .scatterlayer .trace").first.locator("path.point").count() == n
    assert page.locator("#hours .heatmaplayer image").count() == 1
    shown = page.locator("#norms .barlayer path").count()
    assert shown == opened.evaluate("document.getElementById('norms').calcdata[0].length")
    assert f"All {n} windows" in page.locator("#map").inner_text()


@needs_chromium
def test_no_button_sends_a_figure_away(opened: OpenPage) -> None:
    """One of Plotly's default buttons sends the figure to the site of its makers."""
    for name in ("hours", "norms", "umap", "pca"):
        buttons = opened.page.locator(f"#{name} .modebar-btn")
        titles = buttons.evaluate_all("(buttons) => buttons.map((button) => button.dataset.title)")
        assert titles == ["Download plot as a PNG", "Zoom", "Pan", "Zoom in", "Zoom out", "Reset axes"]


@needs_chromium
def test_hours_come_from_the_names(opened: OpenPage, report: Report) -> None:
    text = opened.page.locator("#time").inner_text()
    untimed = sum("2025" not in name for name in report.recordings)
    assert f"Audio of {len(report.recordings) - untimed} recordings" in text
    assert f"Not shown: {untimed} recordings" in text
    cells = opened.evaluate("document.getElementById('hours').calcdata[0][0].z.map((row) => [...row])")
    drawn = {hour: sum(cell or 0 for cell in row) for hour, row in enumerate(cells)}
    expected: Counter[int] = Counter()
    for name, vectors in report.recordings.items():
        if "2025" in name:
            expected[int(name.rpartition("_")[2][:2])] += 5 * len(vectors)
    assert {hour: seconds for hour, seconds in drawn.items() if seconds} == pytest.approx(expected)


@needs_chromium
def test_outliers_are_listed(opened: OpenPage) -> None:
    rows = opened.page.locator("#outliers tbody tr").all_inner_texts()
    assert rows == ["0\tHeide/silent.wav\t0:00.0–0:05.0\t–"]


@needs_chromium
def test_the_chosen_colour_scheme_colours_the_points(opened: OpenPage, report: Report) -> None:
    page = opened.page
    choices = page.locator("#colour option").all_inner_texts()
    assert choices[:2] == ["folder", "label"]
    assert {"recording", "cluster"} <= set(choices)
    before = opened.evaluate("document.getElementById('umap').data[0].marker.color.join()")
    page.select_option("#colour", label="label")
    expected: Counter[str] = Counter()
    for file, label in report.labels.items():
        expected[label] += len(report.recordings[file])
    expected["not known"] = expected.pop("") + 1  # one window of the silent recording, which is not in the manifest
    legend = {
        item.locator("b").inner_text(): int(item.locator("span").inner_text())
        for item in page.locator("#legend li").all()
    }
    assert legend == expected
    for name in ("umap", "pca"):
        fills = opened.evaluate(
            f"[...document.querySelectorAll('#{name} .trace:first-child path.point')].map((point) => point.style.fill)"
        )
        assert sorted(Counter(fills).values()) == sorted(expected.values())
    assert opened.evaluate("document.getElementById('umap').data[0].marker.color.join()") != before
    page.select_option("#colour", label="folder")
    assert opened.evaluate("document.getElementById('umap').data[0].marker.color.join()") == before


def files_of(data: dict[str, Any]) -> list[str]:
    """Return the file of each point."""
    file = data["points"]["file"]
    return [file["distinct"][number] for number in file["which"]]


def isolated_point(data: dict[str, Any], name: str) -> int:
    """Return the point that is furthest from all others, so that a click can hit it.

    The silent window is left out, since no window is near to it.
    """
    xy = np.stack([data["figures"][name]["data"][0][axis] for axis in "xy"], axis=1)
    distances = np.linalg.norm(xy[:, None] - xy[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    is_silent = np.array(files_of(data)) == "Heide/silent.wav"
    return int(np.where(is_silent, -1, distances.min(axis=1)).argmax())


@needs_chromium
@pytest.mark.parametrize("name", ["umap", "pca"])
def test_a_click_lists_the_nearest_windows(name: str, opened: OpenPage, report: Report, data: dict[str, Any]) -> None:
    page, clicked = opened.page, isolated_point(data, name)
    point = page.locator(f"#{name} .scatterlayer .trace").first.locator("path.point").nth(clicked)
    point.scroll_into_view_if_needed()
    box = point.bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)

    files, times = [], []
    for file, windows in report.recordings.items():
        files += [file.removeprefix("/data/")] * len(windows)
        times += [f"0:{5 * index:04.1f}–0:{5 * index + 5:04.1f}" for index in range(len(windows))]
    vectors = np.concatenate(list(report.recordings.values())).astype(np.float32).astype(np.float64)
    clicked_file, clicked_time = files_of(data)[clicked], data["points"]["time"][clicked]
    row = list(zip(files, times, strict=True)).index((clicked_file, clicked_time))
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(vectors[row])
    cosines = np.divide(vectors @ vectors[row], lengths, out=np.zeros(len(vectors)), where=lengths > 0)
    cosines[row] = -2
    nearest = np.argsort(-cosines)[:10]

    assert page.locator("#clicked").inner_text() == f"Nearest to {clicked_file}, {clicked_time}"
    cells = [line.locator("td").all_inner_texts() for line in page.locator("#neighbours tbody tr").all()]
    assert [(line[1], line[2]) for line in cells] == [(files[window], times[window]) for window in nearest]
    folders = [files[window].partition("/")[0] for window in nearest]
    assert [line[4] for line in cells] == folders  # the colour scheme
    assert [float(line[0]) for line in cells] == pytest.approx(cosines[nearest].tolist(), abs=6e-5)
    for map_name in ("umap", "pca"):
        marked = page.locator(f"#{map_name} .scatterlayer .trace").nth(1).locator("path.point")
        assert marked.count() == 10


@needs_chromium
def test_hover_texts_show_hostile_names_as_text(opened: OpenPage, data: dict[str, Any]) -> None:
    page, files = opened.page, files_of(data)
    hostile = next(point for point, file in enumerate(files) if SCRIPT[:8] in file)
    page.mouse.move(1, 1)
    expect(page.locator(".hovertext")).to_have_count(0)  # the hover text of the last click is gone
    opened.evaluate(f"Plotly.Fx.hover('pca', [{{curveNumber: 0, pointNumber: {hostile}}}])")
    lines = page.locator("#pca .hovertext .nums tspan.line").all_text_contents()
    assert lines[0] == files[hostile]
    assert lines[1].startswith("0:0")
    assert f"label: {CLOSE}" in lines


@needs_chromium
def test_hostile_names_run_no_script(opened: OpenPage) -> None:
    """This runs after the tests above, in which names were in tables, in the legend and in hover texts."""
    assert opened.page.title() == "esp_aves2_effnetb0_all · embeddings"
    assert opened.page.locator("img").count() == 0
    assert opened.page.locator("script").count() == 3
    assert opened.errors == []
    assert len(opened.requests) == 1


@needs_chromium
def test_on_a_phone_nothing_is_wider_than_the_screen(report: Report, browser: Browser) -> None:
    with browser.new_context(
        viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True, device_scale_factor=2
    ) as context:
        phone = open_page(context, report.html)
        widths_px = phone.evaluate("[innerWidth, document.documentElement.scrollWidth]")
        assert widths_px == [390, 390]
        boxes = [phone.page.locator(f"#{name}").bounding_box() for name in ("umap", "pca")]
        assert boxes[0] is not None
        assert boxes[1] is not None
        assert boxes[1]["y"] > boxes[0]["y"] + boxes[0]["height"], "the maps are not one below the other"
        assert phone.errors == []


@needs_chromium
def test_in_dark_mode_the_texts_of_figures_are_light(report: Report, browser: Browser) -> None:
    def brightness(colour: str) -> float:
        return sum(map(float, re.findall(r"\d+", colour)[:3])) / 3

    with browser.new_context(color_scheme="dark") as context:
        dark = open_page(context, report.html)
        title = dark.page.locator("#norms .xtitle")
        assert brightness(dark.evaluate("getComputedStyle(document.body).backgroundColor")) < 60
        colour_in_dark_mode = title.evaluate("(text) => getComputedStyle(text).fill")
        assert brightness(colour_in_dark_mode) > 180
        dark.page.emulate_media(color_scheme="light")
        expect(title).not_to_have_css("fill", colour_in_dark_mode)
        assert brightness(title.evaluate("(text) => getComputedStyle(text).fill")) < 80


@needs_chromium
def test_the_pictures_are_written_as_png_files(report: Report) -> None:
    names = {path.name for path in report.png.iterdir()}
    assert {"hours.png", "norms.png", "umap-folder.png", "pca-folder.png", "umap-label.png"} <= names
    assert f"{len(names)} pictures in {report.png}" in report.printed
    for path in report.png.iterdir():
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.stat().st_size > 10_000


@needs_chromium
def test_drawing_png_files_fetches_nothing(report: Report) -> None:
    """By default kaleido lets the browser fetch MathJax. Requests of Chromium to its own makers do not count."""
    requests = (report.png.parent / "requests.json").read_text()
    assert "logEventTypes" in requests
    assert "mathjax" not in requests


def test_the_same_output_has_the_same_page_each_time(report: Report, tmp_path: Path, data: dict[str, Any]) -> None:
    again = tmp_path / "again.html"
    assert main([str(report.html.parent.parent / "out"), "--html", str(again)]) == 0
    timestamp = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC\.")
    assert timestamp.sub("", again.read_text()) == timestamp.sub("", report.html.read_text())

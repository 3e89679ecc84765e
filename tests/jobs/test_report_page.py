"""``jobs.report --html``: the page in a browser, as its reader opens it."""

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
from tests.support.pages import DIM, Opened, opened, output

# What would do something if a page took it for what it means.
SCRIPT = "<script>document.title='hacked'</script>"
IMAGE = "\"'><img src=x onerror=\"document.title='hacked'\">"
CLOSE = "</script><script>document.title='hacked'</script><!--"


@dataclass
class Archive:
    """The sources of the page, as the tests know them."""

    recordings: dict[str, np.ndarray]
    labels: dict[str, str]
    html: Path
    png: Path
    said: str


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    """Forty recordings of three sites, two with hostile names, one of which is silent; and what main() made of them."""
    folder = tmp_path_factory.mktemp("report 'ü'")
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((4, DIM)) * 3
    recordings, labels = {}, {}
    began = datetime(2025, 5, 3, 3, 30)
    for at in range(40):
        site = ("Moor", "Heide", f"{IMAGE[:2]}<b>Wald</b>")[at % 3]
        time = began + timedelta(days=at // 8, hours=at % 8)
        name = f"{time:%Y%m%d_%H%M%S}.WAV" if at % 10 else f"clip {at}.wav"
        file = f"/data/{site}/{name}"
        recordings[file] = centres[at % 4] + rng.standard_normal((6, DIM))
        labels[file] = ("robin", "wren", SCRIPT, "")[at % 4]
    for text in (SCRIPT, CLOSE):
        file = f"/data/Moor/{text.replace('/', '∕')}{IMAGE}.wav"
        recordings[file] = centres[0] + rng.standard_normal((2, DIM))
        labels[file] = CLOSE
    recordings["/data/Heide/silent.wav"] = np.zeros((1, DIM))
    manifest = folder / "a manifest.csv"
    with manifest.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file", "label", IMAGE])
        rows.writerows([name, label, f"{at}{SCRIPT}"] for at, (name, label) in enumerate(labels.items()))
    failures = [
        Failure(f"/data/{CLOSE}", 1, 10, "decode", "corrupt", f"{IMAGE}"),
        Failure("/data/b.wav", 2, 0, "decode", "empty", "no bytes"),
    ]
    output(folder / "out", recordings, failures, str(manifest))
    html, png = folder / "pages" / "a page.html", folder / "png"
    arguments = [str(folder / "out"), "--html", str(html), *(["--png", str(png)] if CHROMIUM else [])]
    listening = folder / "chromium"
    listening.write_text(f'#!/bin/sh\nexec {CHROMIUM} "--log-net-log={folder}/requests.json" "$@"\n')
    listening.chmod(0o755)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("BROWSER_PATH", str(listening))
        said: list[str] = []
        patched.setattr("embedding.cli.terminal.Terminal.say", lambda _, line: said.append(line))
        assert main(arguments) == 0
    return Archive(recordings, labels, html, png, "\n".join(said))


@pytest.fixture(scope="module")
def seen(archive: Archive, browser: Browser) -> Iterator[Opened]:
    with browser.new_context(viewport={"width": 1280, "height": 900}) as context:
        yield opened(context, archive.html)


@pytest.fixture(scope="module")
def data(archive: Archive) -> dict[str, Any]:
    """The data of the page's program."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', archive.html.read_text(), re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def n_windows(archive: Archive) -> int:
    return sum(map(len, archive.recordings.values()))


@needs_chromium
def test_the_page_opens_without_an_error_or_a_request(seen: Opened, archive: Archive) -> None:
    assert seen.errors == []
    assert seen.requests == [archive.html.as_uri()]
    assert seen.page.title() == "esp_aves2_effnetb0_all · embeddings"


@needs_chromium
def test_the_books_are_on_it(seen: Opened, archive: Archive) -> None:
    n = len(archive.recordings)
    assert seen.page.locator(".tiles dd").all_inner_texts()[:3] == [f"{n}", "2", f"{n_windows(archive)}"]
    balance = f"The last run listed {n + 2} = 0 already done + {n} embedded + 2 failed. The books balance."
    assert seen.page.locator("#balance").inner_text() == balance
    assert seen.page.locator("#runs tbody tr").inner_text().split("\t")[:3] == [
        "2025-06-01 18:02 UTC",
        "complete",
        "1 min 15 s",
    ]
    assert "Random weights" in seen.page.locator(".loud").inner_text()
    seen.page.locator("details summary").click()
    assert seen.page.locator("#failed tbody tr").count() == 2


@needs_chromium
def test_every_figure_is_drawn(seen: Opened, archive: Archive) -> None:
    page, n = seen.page, n_windows(archive)
    for name in ("umap", "pca"):
        assert page.locator(f"#{name} .scatterlayer .trace").first.locator("path.point").count() == n
    assert page.locator("#hours .heatmaplayer image").count() == 1
    shown = page.locator("#norms .barlayer path").count()
    assert shown == seen.evaluate("document.getElementById('norms').calcdata[0].length")
    assert f"All {n} windows" in page.locator("#map").inner_text()


@needs_chromium
def test_no_button_sends_a_figure_anywhere(seen: Opened) -> None:
    """Plotly has one that opens its makers' site and hands the figure over."""
    for name in ("hours", "norms", "umap", "pca"):
        buttons = seen.page.locator(f"#{name} .modebar-btn")
        titles = buttons.evaluate_all("(all) => all.map((one) => one.dataset.title)")
        assert titles == ["Download plot as a PNG", "Zoom", "Pan", "Zoom in", "Zoom out", "Reset axes"]


@needs_chromium
def test_hours_are_those_of_the_names(seen: Opened, archive: Archive) -> None:
    text = seen.page.locator("#time").inner_text()
    untimed = sum("2025" not in name for name in archive.recordings)
    assert f"Audio of {len(archive.recordings) - untimed} recordings" in text
    assert f"Left out: {untimed} recordings" in text
    cells = seen.evaluate("document.getElementById('hours').calcdata[0][0].z.map((row) => [...row])")
    drawn = {hour: sum(cell or 0 for cell in row) for hour, row in enumerate(cells)}
    expected: Counter[int] = Counter()
    for name, vectors in archive.recordings.items():
        if "2025" in name:
            expected[int(name.rpartition("_")[2][:2])] += 5 * len(vectors)
    assert {hour: seconds for hour, seconds in drawn.items() if seconds} == pytest.approx(expected)


@needs_chromium
def test_outliers_are_named(seen: Opened) -> None:
    rows = seen.page.locator("#outliers tbody tr").all_inner_texts()
    assert rows == ["0\tHeide/silent.wav\t0:00.0–0:05.0\t–"]


@needs_chromium
def test_choosing_a_colour_colours_the_points(seen: Opened, archive: Archive) -> None:
    page = seen.page
    choices = page.locator("#colour option").all_inner_texts()
    assert choices[:2] == ["folder", "label"]
    assert {"recording", "cluster"} <= set(choices)
    before = seen.evaluate("document.getElementById('umap').data[0].marker.color.join()")
    page.select_option("#colour", label="label")
    expected = Counter(
        {name: sum(len(archive.recordings[file]) for file, label in archive.labels.items() if label == name)
         for name in set(archive.labels.values())}
    )  # fmt: skip
    expected["not known"] = expected.pop("") + 1  # of the silent one, which the manifest does not name
    legend = {
        item.locator("b").inner_text(): int(item.locator("span").inner_text())
        for item in page.locator("#legend li").all()
    }
    assert legend == expected
    for name in ("umap", "pca"):
        fills = seen.evaluate(
            f"[...document.querySelectorAll('#{name} .trace:first-child path.point')].map((point) => point.style.fill)"
        )
        assert sorted(Counter(fills).values()) == sorted(expected.values())
    assert seen.evaluate("document.getElementById('umap').data[0].marker.color.join()") != before
    page.select_option("#colour", label="folder")
    assert seen.evaluate("document.getElementById('umap').data[0].marker.color.join()") == before


def files_of(data: dict[str, Any]) -> list[str]:
    """Return a property of each point."""
    file = data["points"]["file"]
    return [file["distinct"][at] for at in file["which"]]


def lonely(data: dict[str, Any], name: str) -> int:
    """The point that is furthest from all others, so that it can be hit; not the silent one, to which none is near."""
    xy = np.stack([data["figures"][name]["data"][0][axis] for axis in "xy"], axis=1)
    apart = np.linalg.norm(xy[:, None] - xy[None], axis=2)
    np.fill_diagonal(apart, np.inf)
    is_silent = np.array(files_of(data)) == "Heide/silent.wav"
    return int(np.where(is_silent, -1, apart.min(axis=1)).argmax())


@needs_chromium
@pytest.mark.parametrize("name", ["umap", "pca"])
def test_a_click_lists_what_is_nearest(name: str, seen: Opened, archive: Archive, data: dict[str, Any]) -> None:
    page, clicked = seen.page, lonely(data, name)
    point = page.locator(f"#{name} .scatterlayer .trace").first.locator("path.point").nth(clicked)
    point.scroll_into_view_if_needed()
    box = point.bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)

    keys = [(file.removeprefix("/data/"), at) for file, own in archive.recordings.items() for at in range(len(own))]
    vectors = np.concatenate(list(archive.recordings.values())).astype(np.float32).astype(np.float64)
    own = (files_of(data)[clicked], data["points"]["time"][clicked])
    times = [f"0:{5 * at:04.1f}–0:{5 * at + 5:04.1f}" for _, at in keys]
    itself = [(file, time) for (file, _), time in zip(keys, times, strict=True)].index(own)
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(vectors[itself])
    cosines = np.divide(vectors @ vectors[itself], lengths, out=np.zeros(len(vectors)), where=lengths > 0)
    cosines[itself] = -2
    best = np.argsort(-cosines)[:10]

    assert page.locator("#clicked").inner_text() == f"Nearest to {own[0]}, {own[1]}"
    rows = [row.locator("td").all_inner_texts() for row in page.locator("#nearest tbody tr").all()]
    assert [(row[1], row[2]) for row in rows] == [(keys[at][0], times[at]) for at in best]
    assert [row[4] for row in rows] == [keys[at][0].partition("/")[0] for at in best]  # by which they are coloured
    assert [float(row[0]) for row in rows] == pytest.approx(cosines[best].tolist(), abs=6e-5)
    for each in ("umap", "pca"):
        marked = page.locator(f"#{each} .scatterlayer .trace").nth(1).locator("path.point")
        assert marked.count() == 10


@needs_chromium
def test_hover_shows_names_as_they_are(seen: Opened, data: dict[str, Any]) -> None:
    page, files = seen.page, files_of(data)
    hostile = next(at for at, file in enumerate(files) if SCRIPT[:8] in file)
    page.mouse.move(1, 1)
    expect(page.locator(".hovertext")).to_have_count(0)  # of what was clicked before
    seen.evaluate(f"Plotly.Fx.hover('pca', [{{curveNumber: 0, pointNumber: {hostile}}}])")
    lines = page.locator("#pca .hovertext .nums tspan.line").all_text_contents()
    assert lines[0] == files[hostile]
    assert lines[1].startswith("0:0")
    assert f"label: {CLOSE}" in lines


@needs_chromium
def test_hostile_names_do_nothing(seen: Opened) -> None:
    """After everything above: names were in tables, in the legend and in hover."""
    assert seen.page.title() == "esp_aves2_effnetb0_all · embeddings"
    assert seen.page.locator("img").count() == 0
    assert seen.page.locator("script").count() == 3
    assert seen.errors == []
    assert len(seen.requests) == 1


@needs_chromium
def test_on_a_phone_nothing_is_wider_than_it(archive: Archive, browser: Browser) -> None:
    with browser.new_context(
        viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True, device_scale_factor=2
    ) as context:
        phone = opened(context, archive.html)
        seen_px = phone.evaluate("[innerWidth, document.documentElement.scrollWidth]")
        assert seen_px == [390, 390]
        boxes = [phone.page.locator(f"#{name}").bounding_box() for name in ("umap", "pca")]
        assert boxes[0] is not None
        assert boxes[1] is not None
        assert boxes[1]["y"] > boxes[0]["y"] + boxes[0]["height"], "one below the other"
        assert phone.errors == []


@needs_chromium
def test_in_the_dark_text_is_light_in_the_figures_too(archive: Archive, browser: Browser) -> None:
    def brightness(colour: str) -> float:
        return sum(map(float, re.findall(r"\d+", colour)[:3])) / 3

    with browser.new_context(color_scheme="dark") as context:
        dark = opened(context, archive.html)
        title = dark.page.locator("#norms .xtitle")
        assert brightness(dark.evaluate("getComputedStyle(document.body).backgroundColor")) < 60
        in_the_dark = title.evaluate("(text) => getComputedStyle(text).fill")
        assert brightness(in_the_dark) > 180
        dark.page.emulate_media(color_scheme="light")
        expect(title).not_to_have_css("fill", in_the_dark)
        assert brightness(title.evaluate("(text) => getComputedStyle(text).fill")) < 80


@needs_chromium
def test_the_same_pictures_are_png_files(archive: Archive) -> None:
    names = {path.name for path in archive.png.iterdir()}
    assert {"hours.png", "norms.png", "umap-folder.png", "pca-folder.png", "umap-label.png"} <= names
    assert f"{len(names)} pictures in {archive.png}" in archive.said
    for path in archive.png.iterdir():
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.stat().st_size > 10_000


@needs_chromium
def test_drawing_them_fetches_nothing(archive: Archive) -> None:
    """By default kaleido has the browser fetch MathJax; requests of Chromium to its makers do not count."""
    requests = (archive.png.parent / "requests.json").read_text()
    assert "logEventTypes" in requests
    assert "mathjax" not in requests


def test_the_same_output_gives_the_same_page(archive: Archive, tmp_path: Path, data: dict[str, Any]) -> None:
    again = tmp_path / "again.html"
    assert main([str(archive.html.parent.parent / "out"), "--html", str(again)]) == 0
    dated = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC\.")
    assert dated.sub("", again.read_text()) == dated.sub("", archive.html.read_text())

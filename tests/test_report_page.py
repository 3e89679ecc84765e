"""``jobs.report --html``: the page in a browser, as its reader opens it, and what it says where there is little."""

import csv
import json
import re
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from embedding import storage
from embedding.decoding.decode import Failure
from embedding.output.store import Store, embeddings_schema
from jobs.report import main
from tests.conftest import ROOT

CHROMIUM = shutil.which("chromium")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here (apt-get install chromium)")
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
DIM = 16
SETTINGS = {
    "model": "esp_aves2_effnetb0_all",
    "window_s": 5.0,
    "hop_s": 5.0,
    "pooling": "mean",
    "precision": "fp32",
    "checkpoint": "random",
    "embedding_size": DIM,
}
# What would do something if a page took it for what it means.
SCRIPT = "<script>document.title='hacked'</script>"
IMAGE = "\"'><img src=x onerror=\"document.title='hacked'\">"
CLOSE = "</script><script>document.title='hacked'</script><!--"


def windows(recordings: dict[str, np.ndarray]) -> pa.Table:
    """A shard with a window of 5 s for each vector of each recording."""
    n = [len(vectors) for vectors in recordings.values()]
    of = np.repeat(np.arange(len(n)), n)
    index = np.concatenate([np.arange(each) for each in n])
    flat = np.concatenate(list(recordings.values())).astype(np.float32).reshape(-1)
    columns: dict[str, Any] = {
        "file": np.array(list(recordings))[of],
        "file_id": of + 1000,
        "window_index": index,
        "n_windows": np.array(n)[of],
        "start_time": index * 5.0,
        "end_time": index * 5.0 + 5,
        "sample_rate": np.full(len(of), 48_000),
        "channels": np.full(len(of), 1),
        "duration": np.array(n)[of] * 5.0,
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(flat), DIM),
    }
    return pa.table(columns).cast(embeddings_schema(DIM))


def output(root: Path | str, recordings: dict[str, np.ndarray], failures: list[Failure], *inputs: str) -> Store:
    """As a run over ``inputs`` would have left it."""
    store = Store(str(root), json.dumps(SETTINGS))
    if recordings:
        store.write_shard(windows(recordings), "shard")
    store.write_failures(failures, "run")
    n, n_failed = len(recordings), len(failures)
    store.write_json("run.json", {"settings": SETTINGS, "options": {"input": list(inputs)}})
    books = {"listed": n + n_failed, "already_done": 0, "embedded": n, "failed": n_failed, "balanced": True}
    run = {
        "started": "2025-06-01T18:02:11.000+00:00",
        "host": "laptop",
        "state": "complete",
        "wall_s": 75.0,
        "recordings_finished": n,
        "recordings_failed": n_failed,
        "windows_written": sum(map(len, recordings.values())),
        "times_real_time": 41.5,
    }
    totals = store.read().totals()
    store.write_json("report.json", {"state": "complete", "recordings": books, "output": totals, "runs": [run]})
    return store


# --- one page with everything, and the browser it is opened in --------------------------------------------------


@dataclass
class Archive:
    """What the page is made of, as the tests know it."""

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
        patched.setattr("embedding.console.People.say", lambda _, line: said.append(line))
        assert main(arguments) == 0
    return Archive(recordings, labels, html, png, "\n".join(said))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        yield chromium
        chromium.close()


@dataclass
class Opened:
    """A page in a browser, and what it did that it should not."""

    page: Page
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def evaluate(self, expression: str) -> Any:
        return self.page.evaluate(expression)


def opened(context: BrowserContext, html: Path) -> Opened:
    found = Opened(context.new_page())
    found.page.on("console", lambda message: found.errors.append(message.text) if message.type != "log" else None)
    found.page.on("pageerror", lambda error: found.errors.append(str(error)))
    found.page.on("request", lambda request: found.requests.append(request.url))
    context.route(lambda url: not url.startswith("file:"), lambda route: route.abort())
    found.page.goto(html.as_uri())
    found.page.locator("html[data-drawn]").wait_for(state="attached")
    return found


@pytest.fixture(scope="module")
def seen(archive: Archive, browser: Browser) -> Iterator[Opened]:
    with browser.new_context(viewport={"width": 1280, "height": 900}) as context:
        yield opened(context, archive.html)


@pytest.fixture(scope="module")
def data(archive: Archive) -> dict[str, Any]:
    """What the page's program is given."""
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
    """Of each point."""
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
    """Of its own accord kaleido has the browser fetch MathJax; what a Chromium asks its makers is its own affair."""
    requests = (archive.png.parent / "requests.json").read_text()
    assert "logEventTypes" in requests
    assert "mathjax" not in requests


def test_the_same_output_gives_the_same_page(archive: Archive, tmp_path: Path, data: dict[str, Any]) -> None:
    again = tmp_path / "again.html"
    assert main([str(archive.html.parent.parent / "out"), "--html", str(again)]) == 0
    dated = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC\.")
    assert dated.sub("", again.read_text()) == dated.sub("", archive.html.read_text())


# --- where there is little to show ------------------------------------------------------------------------------

RNG = np.random.default_rng(1)
LITTLE: dict[str, tuple[dict[str, np.ndarray], list[Failure], list[str]]] = {
    "only failures": (
        {},
        [Failure("/a.wav", 1, 0, "decode", "empty", "no bytes")],
        ["Nothing is embedded.", "There are no vectors.", "There are no windows to draw.", "/a.wav: no bytes"],
    ),
    "one window": (
        {"/a.wav": RNG.standard_normal((1, DIM))},
        [],
        ["Of 1 recording none says when it began", "There is one window: nothing to compare it with.", "None."],
    ),
    "two windows": (
        {"/a.wav": RNG.standard_normal((2, DIM))},
        [],
        ["All 2 windows", "There are 2 windows; below 10 UMAP has nothing to go by."],
    ),
    "one recording": (
        {"/20250503_031300.WAV": RNG.standard_normal((30, DIM))},
        [],
        ["Audio of 1 recording by date", "All 30 windows, each a point."],
    ),
    "silence": (
        {"/a.wav": np.zeros((12, DIM))},
        [],
        ["12 vectors, and every one is zero.", "their vectors are all the same, so there is nothing to tell apart"],
    ),
    "mostly silence": (
        {"/a.wav": np.concatenate([np.zeros((12, DIM)), RNG.standard_normal((3, DIM))])},
        [],
        ["; 3 lie outside.", "All 15 windows, each a point."],
    ),
    "not finite": (
        {"/a.wav": np.full((3, DIM), np.nan)},
        [],
        ["There are no vectors. 3 vectors not finite.", "There are no windows to draw."],
    ),
}


@needs_chromium
@pytest.mark.parametrize("case", LITTLE)
def test_where_there_is_little_to_show_the_page_says_so(case: str, tmp_path: Path, browser: Browser) -> None:
    recordings, failures, words = LITTLE[case]
    output(tmp_path / "out", recordings, failures)
    assert main([str(tmp_path / "out"), "--html", str(tmp_path / "page.html")]) == 0
    with browser.new_context() as context:
        found = opened(context, tmp_path / "page.html")
        text = found.page.locator("main").inner_text()
        for each in words:
            assert each in text
        assert found.errors == []


def test_what_disagrees_and_what_nobody_knows_is_said(tmp_path: Path) -> None:
    output(tmp_path / "out", {"/a.wav": RNG.standard_normal((3, DIM))}, [])
    for name in ("run.json", "report.json"):
        (tmp_path / "out" / name).unlink()
    page = tmp_path / "page.html"
    assert main([str(tmp_path / "out"), "--html", str(page)]) == 1
    assert '<p class="warning">there was no report.json</p>' in page.read_text()
    assert "esp_aves2_effnetb0_all" in page.read_text()  # as the shards say


def test_a_sample_is_as_large_as_is_asked_for(tmp_path: Path) -> None:
    output(tmp_path / "out", {f"/{at}.wav": RNG.standard_normal((5, DIM)) for at in range(10)}, [])
    page = tmp_path / "page.html"
    assert main([str(tmp_path / "out"), "--html", str(page), "--sample", "7"]) == 0
    assert "7 of 50 windows, drawn at random, each a point." in page.read_text()


def test_a_manifest_that_was_the_input_and_is_gone_is_said(tmp_path: Path) -> None:
    output(tmp_path / "out", {"/a.wav": RNG.standard_normal((3, DIM))}, [], "/data", str(tmp_path / "gone.csv"))
    page = tmp_path / "page.html"
    assert main([str(tmp_path / "out"), "--html", str(page)]) == 0
    said = f"{tmp_path}/gone.csv, which was the input, cannot be read now: --manifest says where it is"
    assert f'<p class="warning">{said}</p>' in page.read_text()


def test_a_manifest_of_other_recordings_is_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    output(tmp_path / "out", {"/a.wav": RNG.standard_normal((3, DIM))}, [])
    (tmp_path / "m.csv").write_text("file,label\na.wav,robin\n")  # relative: below tmp_path
    page = tmp_path / "page.html"
    assert main([str(tmp_path / "out"), "--html", str(page), "--manifest", str(tmp_path / "m.csv")]) == 0
    said = f"{tmp_path}/m.csv has a row for none of the recordings that were drawn: other paths?"
    assert said in capfd.readouterr().out
    assert f'<p class="warning">{said}</p>' in page.read_text()


def test_outputs_and_pages_may_lie_in_s3(bucket: str, capfd: pytest.CaptureFixture[str]) -> None:
    root = f"s3://{bucket}/an output"
    output(root, {"/a.wav": RNG.standard_normal((3, DIM))}, [])
    assert main([root, "--html", f"{root}/page.html"]) == 0
    assert f"page: {root}/page.html (" in capfd.readouterr().out
    assert b"All 3 windows, each a point." in storage.read_bytes(f"{root}/page.html")


def test_json_stays_json_beside_a_page(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    output(tmp_path / "out", {"/a.wav": RNG.standard_normal((3, DIM))}, [])
    assert main([str(tmp_path / "out"), "--json", "--html", str(tmp_path / "page.html")]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["output"]["windows"] == 3
    assert err.startswith(f"page: {tmp_path}/page.html (")


# --- requests that make no sense --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--html", "{folder}"], "--html: {folder} is a folder; name a file in it"),
        (["--html", "{folder}/file/page.html"], "--html: cannot make {folder}/file: File exists"),
        (["--html", "ftp://a/page.html"], "--html: ftp:// is not supported"),
        (["--html", "p.html", "--sample", "0"], "--sample: expected a whole number of at least 1 and at most 10,000"),
        (["--html", "p.html", "--sample", "many"], "--sample: expected a whole number"),
        (["--html", "p.html", "--manifest", "{folder}/none.csv"], "--manifest: cannot read manifest {folder}/none.csv"),
        (["--html", "p.html", "--manifest", "{folder}/file"], "--manifest: {folder}/file is no manifest"),
        (
            ["--sample", "7"],
            "--manifest and --sample are for pictures: say with --html FILE or --png DIR where they go",
        ),
        (["--htlm", "p.html"], "unknown option --htlm (did you mean '--html'?)"),
        (["--png", "{folder}/file"], "--png: cannot make {folder}/file: File exists"),
        (["--png", ""], "--png: expected a path or an s3:// URI, got an empty name"),
        (["--png", "s3://bucket/png"], "--png: s3://bucket/png is no folder of this machine"),
    ],
)
def test_what_makes_no_sense_is_refused_before_the_work(
    options: list[str], reason: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    named = [option.format(folder=tmp_path) for option in options]
    assert main([str(tmp_path / "no output"), *named]) == 2
    error = capfd.readouterr().err
    assert error.startswith(f"avex-batch: {reason.format(folder=tmp_path)}")
    assert error.count("\n") == 1


def test_without_a_browser_there_is_a_page_but_no_png(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BROWSER_PATH", "/nowhere/chromium")
    output(tmp_path / "out", {"/a.wav": RNG.standard_normal((3, DIM))}, [])
    assert main([str(tmp_path / "out"), "--png", str(tmp_path / "png")]) == 2
    error = capfd.readouterr().err
    assert error.startswith("avex-batch: --png needs a Chrome or Chromium, and there is none: apt-get install chromium")
    assert error.count("\n") == 1
    assert main([str(tmp_path / "out"), "--html", str(tmp_path / "page.html")]) == 0


def test_without_the_extra_it_is_said_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)
    assert main([str(tmp_path), "--html", str(tmp_path / "page.html")]) == 2
    said = "avex-batch: --html needs what is not installed (umap): pip install avex-batch[report]\n"
    assert capfd.readouterr().err == said


def test_an_installed_package_has_the_template(tmp_path: Path) -> None:
    """Not an editable one: a wheel has what pyproject.toml says it has."""
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("embedding", "jobs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", "."]
    subprocess.run([*build, "."], cwd=tmp_path, check=True, capture_output=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    assert {f"embedding/overview/templates/page.{kind}" for kind in ("html", "css", "js")} <= packed

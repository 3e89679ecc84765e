"""Documents have valid links and name existing files; docstrings begin with a sentence."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.support.commands import ROOT

LISTED = subprocess.run(
    ["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True
).stdout.split()
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"")
FENCE = re.compile(r"^(`{3,}).*?^\1", re.MULTILINE | re.DOTALL)


def prose(document: str) -> str:
    """Return the text of a document without its code blocks."""
    return FENCE.sub("", (ROOT / document).read_text())


def anchors(path: Path) -> set[str]:
    """Return the anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ +(.*)$", FENCE.sub("", path.read_text()), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text.lower())) for text in headings)
    return {text.strip().replace(" ", "-") for text in plain}


@pytest.mark.parametrize("document", LISTED)
def test_links_between_documents_are_valid(document: str) -> None:
    for match in LINK.finditer(prose(document)):
        target = match[1] or match[2]
        if re.match(r"[a-z]+:", target):  # another site
            continue
        name, _, anchor = target.partition("#")
        path = (ROOT / document).parent / name if name else ROOT / document
        assert path.exists(), f"{document} links to {target}"
        if anchor:
            assert anchor in anchors(path), f"{document} links to {target}"


@pytest.mark.parametrize("document", LISTED)
def test_files_that_a_document_names_exist(document: str) -> None:
    known = {path.name for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}
    known |= {"mypy.py", "sitecustomize.py"}
    for name in re.findall(r"`(?:[\w./]+/)?(\w+\.py)\b", prose(document)):
        assert name in known, f"{document} names {name}"


def test_the_index_names_every_document() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    for path in (ROOT / "docs").glob("*.md"):
        assert path.name == "index.md" or f"({path.name})" in index


def test_every_module_of_the_package_has_a_docstring() -> None:
    for path in (ROOT / "embedding").rglob("*.py"):
        first = path.read_text().partition("\n")[0]
        assert first.startswith('"""'), path


OPENINGS = ("What", "Of", "Whether", "Who", "Where", "How", "That", "Likewise", "As", "Which")
FOLDERS = ("embedding", "jobs", "benchmarks", "examples", "tests")


def is_question(folder: str, line: str) -> bool:
    """Return whether a line is the question that a benchmark answers."""
    return folder == "benchmarks" and "?" in line


@pytest.mark.parametrize("folder", FOLDERS)
def test_docstrings_begin_with_a_sentence(folder: str) -> None:
    pattern = re.compile(rf'"""({"|".join(OPENINGS)})\b')
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in sorted((ROOT / folder).rglob("*.py"))
        for line in path.read_text().splitlines()
        if pattern.search(line) and path.name != "test_documents.py" and not is_question(folder, line)
    ]
    assert not found, "\n".join(found)

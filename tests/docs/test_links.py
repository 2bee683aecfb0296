"""Every link, path and diff in README and docs/ fits the repository as it is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = "reference|fast|compare|planish|pocket|tests|docs|examples"
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")]
PAGES += [*sorted((ROOT / "docs").glob("*.md")), ROOT / "pocket" / "README.md"]
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([\w-]+))?\)")
PATH = re.compile(rf"(?<![\w/.$~-])((?:{ROOMS})/[\w./*-]*)")
DIFF = re.compile(r"```diff\n(.*?)```", re.DOTALL)


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def headings(page: Path) -> set[str]:
    """The anchors of a page, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", text_of(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def cases(found: dict[Path, list]) -> list:
    return [
        pytest.param(page, item, id=f"{page.relative_to(ROOT)}-{item}")
        for page, items in found.items()
        for item in sorted(set(items))
    ]


@pytest.mark.parametrize(("page", "link"), cases({p: LINK.findall(text_of(p)) for p in PAGES}))
def test_every_link_leads_somewhere(page, link):
    path, anchor = link
    target = (page.parent / path).resolve() if path else page
    assert target.exists()
    assert not anchor or anchor in headings(target)


def without_diffs(page: Path) -> str:
    return DIFF.sub("", text_of(page))


@pytest.mark.parametrize(
    ("page", "path"), cases({p: PATH.findall(without_diffs(p)) for p in PAGES})
)
def test_every_path_that_is_named_exists(page, path):
    path = path.rstrip(".-*/") if path.count("*") != 1 else path.rstrip("./")
    beside = page.parent / path  # pocket/README.md names its neighbours
    assert any(ROOT.glob(path)) or beside.exists()


def diffs() -> list[tuple[str, str]]:
    """Of every diff that changes an existing file: the file, and lines that must be in it."""
    found = []
    for page in PAGES:
        for block in DIFF.findall(text_of(page)):
            for file, body in re.findall(
                r"^--- a/(\S+)\n\+\+\+ .*\n((?:[@ +-].*\n)+)", block, re.MULTILINE
            ):
                hunks = re.split(r"^@@.*\n", body, flags=re.MULTILINE)[1:]
                found += [(file, "".join(before(hunk))) for hunk in hunks]
    return found


def before(hunk: str) -> list[str]:
    """The lines of a hunk that are there before it is applied."""
    return [line[1:] for line in hunk.splitlines(keepends=True) if line[0] in " -"]


@pytest.mark.parametrize(("file", "lines"), diffs())
def test_every_diff_fits_the_file_that_it_changes(file, lines):
    assert lines in text_of(ROOT / file)


def test_the_pages_were_found():
    assert len(PAGES) > 8 and len(diffs()) >= 2
    assert sum(len(PATH.findall(text_of(page))) for page in PAGES) > 30

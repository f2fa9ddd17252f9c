"""Every relative link, anchor and path in README.md and docs/ exists."""

import re
import unicodedata
from pathlib import Path

import pytest

from docs.scripts.site import links
from tests.support.documentation import FENCED, PAGES, without_code
from tests.support.paths import EXPERIMENTS, ROOT

OTHER_PAGES = [
    *(ROOT / name for name in ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "model/baselines/README.md")),
    *sorted(EXPERIMENTS.rglob("*.md")),
]
TOP_LEVEL = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")}
UNTRACKED = ("data/", "runs/", "bundles/", "build/")
PATH = re.compile(r"`([\w.-]+(?:/[\w.*-]+)+/?|[\w-]+/)`")


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """Return the anchors that both GitHub and MkDocs generate for a page's headings."""
    headings = re.findall(r"^#+ (.+?)\s*$", FENCED.sub("", page.read_text()), re.MULTILINE)
    texts = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "") for heading in headings]
    return {github_slug(text) for text in texts} & {mkdocs_slug(text) for text in texts}


def github_slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def mkdocs_slug(heading: str) -> str:
    ascii_only = unicodedata.normalize("NFKD", heading).encode("ascii", "ignore").decode()
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", ascii_only).strip().lower())


@pytest.mark.parametrize("page", [*PAGES, *OTHER_PAGES], ids=page_id)
def test_every_relative_link_and_anchor_exists(page: Path) -> None:
    for target, anchor in links(page.read_text()):
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{target} does not exist"
        assert path.is_relative_to(ROOT), f"{target} is outside the repository"
        if anchor:
            assert path.suffix == ".md", f"{target}#{anchor}: only pages have anchors"
            assert anchor in anchors(path), f"{target}#{anchor}: choose one of {sorted(anchors(path))}"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_named_path_exists(page: Path) -> None:
    for path in PATH.findall(without_code(page)):
        if path.split("/")[0] in TOP_LEVEL and not path.startswith(UNTRACKED):
            assert list(ROOT.glob(path.rstrip("/"))), f"{path} does not exist"


def test_a_page_links_to_files_and_not_to_folders() -> None:
    """The site has no page for a folder."""
    for page in PAGES[1:]:
        for target, _ in links(page.read_text()):
            assert not target or (page.parent / target).is_file(), f"{page_id(page)} links to the folder {target}"


def test_every_page_is_reachable_from_the_readme() -> None:
    reached, unread = set(), [ROOT / "README.md"]
    while unread:
        page = unread.pop().resolve()
        if page not in reached and page in PAGES:
            reached.add(page)
            unread += [page.parent / target for target, _ in links(page.read_text()) if target.endswith(".md")]
    assert reached == set(PAGES) - {ROOT / "docs" / "index.md"} or reached == set(PAGES)


def test_links_outside_code_are_found() -> None:
    page = "[a](b.md#c) ![d](e.png)\n\n```sh\n[f](g)\n```\n\n`[h](i)` [j](https://k) [l](#m)\n"
    assert list(links(page)) == [("b.md", "c"), ("e.png", ""), ("", "m")]

"""The Markdown pages: the links, files, symbols and make targets that they name exist."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*.md")]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
PATH = re.compile(r"`([\w.-]+/[\w./-]*|[\w-]+\.(?:py|h|cpp|md|txt|toml))`")
SYMBOL = re.compile(r"`([\w.]+)` in `([\w./-]+\.(?:py|h|cpp))`")


def anchors(page):
    """The anchors that GitHub derives from a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_have_targets(page):
    for link in LINK.findall(page.read_text()):
        if link.startswith("http"):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "docs/architecture.md", "docs/bench.md"])
def test_named_paths_and_symbols_exist(name):
    text = (ROOT / name).read_text()
    paths = {path for path in PATH.findall(text) if not path.startswith("out/")}
    assert paths
    assert not [path for path in paths if not (ROOT / path).exists()]
    assert not [found for found in SYMBOL.findall(text) if found[0] not in (ROOT / found[1]).read_text()]


@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.torch.jit.* is deprecated:FutureWarning")  # torch 2.15
@pytest.mark.filterwarnings("ignore:.*feature will be removed:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:You are using the legacy TorchScript-based:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", ["replace.md", "testing.md", "tracing.md"])
def test_code_on_pages_runs(name, tmp_path):
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / name).read_text(), re.M | re.S)
    assert blocks
    file = tmp_path / "page.py"  # TorchScript reads the source of what it compiles
    file.write_text("\n".join(blocks))
    runpy.run_path(str(file), run_name="page")


def test_medians_in_tables_lie_inside_their_quartiles():
    found = [
        tuple(map(float, ratio))
        for page in PAGES
        for ratio in re.findall(r"\| ([\d.]+) \(([\d.]+)–([\d.]+)\)", page.read_text())
    ]
    assert len(found) > 100 and all(low <= median <= high for median, low, high in found)


def test_the_index_of_make_docs_lists_every_page():
    index = (ROOT / "docs" / "index.md").read_text()
    listed = {
        (ROOT / "docs" / f"{name}.md").resolve()
        for name in re.findall(r"^((?!---)[\w./-]+)$", index, re.MULTILINE)
    }
    unlisted = {ROOT / "docs" / name for name in ("index.md", "README.md")}  # README.md is the list on GitHub
    assert listed == {*PAGES, *ROOT.glob("docs/gpu/*.md")} - unlisted


def test_named_make_targets_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {
        name for page in PAGES for name in re.findall(r"(?:`|^ +|^)make ([a-z-]+)", page.read_text(), re.M)
    }
    assert len(named) > 5 and named <= targets

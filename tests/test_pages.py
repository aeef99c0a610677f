"""What pages point to is there: links, their anchors, and the files that they name."""

import re
from pathlib import Path

import pytest

from vcjax.cli import command_table

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(
    str(path.relative_to(ROOT)) for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
)
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
NAMED = re.compile(
    r"`((?:vcjax|tests|scripts|docs|configs|examples)/[\w./-]+|[\w.-]+\.(?:cfg|toml))`"
)
"""A file or folder of this repository, as text."""


def prose(page):
    """The text of a page without blocks of code."""
    return FENCED.sub("", (ROOT / page).read_text())


def anchors(path):
    """What headings of a page are called in links, by GitHub's rule."""
    headings = re.findall(r"^#+ (.+)$", prose(path.relative_to(ROOT)), re.M)
    plain = [re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings]
    return {heading.replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = ((ROOT / page).parent / name).resolve() if name else ROOT / page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), target


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/architecture.md"])
def test_files_that_are_named_exist(page):
    names = NAMED.findall(prose(page))
    assert len(names) > 20
    for name in names:
        place = ROOT / (name if "NAME" not in name else name[: name.index("NAME")])
        assert place.exists(), name


def test_the_architecture_tells_of_every_package():
    rows = re.findall(r"^\| `vcjax/(\w+)(?:\.py)?` \| \S", prose("docs/architecture.md"), re.M)
    folders = {path.parent.name for path in (ROOT / "vcjax").glob("*/__init__.py")}
    assert sorted(rows) == sorted(folders | {"errors"})


def test_readme_leads_to_every_page():
    found = set(LINK.findall(prose("README.md")))
    led = {target.partition("#")[0] for target in found} | {"README.md"}
    assert set(PAGES) <= led


def test_contributing_names_commands_that_there_are():
    told = set(re.findall(r"`vcjax/cli/commands/(\w+)\.py`", prose("CONTRIBUTING.md")))
    assert {name.rstrip("_") for name in told - {"NAME"}} <= set(command_table.names())

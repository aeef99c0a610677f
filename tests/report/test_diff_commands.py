"""`vcjax diff` in all its forms, and `vcjax similarity`."""

import json

import numpy as np
import pytest

import vcjax
from vcjax import formats, report
from vcjax.errors import VcjaxError


@pytest.fixture
def project(repo):
    """Two branches: both changed `a/w`, one `a/b`, the other `c`."""
    rng = np.random.default_rng(0)
    base = {"a": {"w": rng.normal(size=(12, 8)), "b": np.zeros(8)}, "c": np.ones(3), "n": 1}
    step = rng.normal(size=(12, 8))
    repo.commit(base, "base")
    for name, scale in (("task", 0.01), ("other", -0.02)):
        repo.branch(name)
        mine = {**base, "a": {**base["a"], "w": base["a"]["w"] + scale * step}}
        if name == "task":
            mine["a"]["b"] = np.ones(8)
        else:
            mine["c"] = np.zeros(3)
        repo.commit(mine, name, branch=name)
    return repo


@pytest.fixture
def cli(cli_of, project):
    return cli_of(project)


def test_sort_and_status(cli):
    lines = cli("diff", "main", "task", "--sort=relative").splitlines()
    assert [line.split()[1] for line in lines[1:3]] == ["a/b", "a/w"]
    assert [line.split()[1] for line in cli("diff", "main..task", "--sort=path").splitlines()[1:3]]
    only = cli("diff", "main", "task", "--status=unchanged")
    assert [line.split()[:2] for line in only.splitlines()[:-1]][1:] == [["=", "c"], ["=", "n"]]
    document = json.loads(cli("diff", "main", "task", "--status=changed", "--sort=path", "--json"))
    assert [change["path"] for change in document["changes"]] == ["a/b", "a/w"]
    assert document["counts"]["unchanged"] == 2
    assert "no leaf is that" in cli("diff", "--status=broken", code=2)


def test_modules(cli):
    lines = cli("diff", "main", "task", "--depth=1").splitlines()
    assert lines[1].split()[:3] == ["a", "2", "changed"]
    assert lines[1].count("~") == 20
    assert lines[-1] == "2 changed, 2 unchanged"


def test_ranges_and_files(cli, project, tmp_path):
    assert cli("diff", "main..task") == cli("diff", "main", "task")
    for name in ("one", "two"):
        formats.write(tmp_path / f"{name}.npz", {"w": np.full(2, len(name) + ord(name[0]))})
    files = [str(tmp_path / "x" / ".." / f"{name}.npz") for name in ("one", "two")]
    (tmp_path / "x").mkdir()
    assert "1 changed" in cli("diff", *files)


def test_markdown(cli):
    text = cli("diff", "main", "task", "--markdown")
    assert text.startswith("## main → task\n")
    assert "| `a/w` | changed | float64" in text
    three = cli("diff", "task", "other", "--base=main", "--markdown")
    assert "Since their common base: 1 ours, 1 theirs, 1 both, 1 unchanged." in three
    assert "| `a/w` | changed | changed | -1 | 0.00 % | 100.00 % |" in three
    assert "leave one out" in cli("diff", "--markdown", "--json", code=2)


def test_a_page(cli, tmp_path):
    page = tmp_path / "page.html"
    out = cli("diff", "task", "other", "--base=main", f"--html={page}")
    assert out.splitlines() == ["3 changed, 1 unchanged", f"written to {page}"]
    text = page.read_text()
    assert "singular_values" in text
    assert "What both sides changed" in text
    assert "1 ours, 1 theirs, 1 both, 1 unchanged" in text


def test_three_ways(cli, project):
    lines = cli("diff", "task", "other", "--base=main").splitlines()
    rows = {line.split()[1]: line.split() for line in lines[1:-2]}
    assert rows["a/w"][:7] == ["!", "a/w", "changed", "changed", "-1", "0.00", "%"]
    assert rows["a/b"][:4] == ["<", "a/b", "changed", "[0.0,"]
    assert rows["a/b"][-1] == "unchanged"
    assert " ".join(rows["c"]) == "> c unchanged changed [1.0, 1.0, 1.0] → [0.0, 0.0, 0.0]"
    assert lines[-2] == "1 ours, 1 theirs, 1 both, 1 unchanged"
    assert lines[-1].startswith("where both changed: cosine -1, same sign 0.00 %")
    document = json.loads(cli("diff", "task", "other", "--base=main", "--json"))
    assert document["three_way"]["counts"]["both"] == 1
    assert document["base"]["commit"] == project.resolve("main").digest
    found = project.diff("task", "other", base="main")
    assert found.three_way.stats["cosine"] == pytest.approx(-1)


def test_similarity(cli, project, tmp_path):
    lines = cli("similarity", "task", "other", "task").splitlines()
    assert lines[0].split() == ["cosine", "norm", "task", "other", "task"]
    found = project.similarity(["task", "other"], "main")
    assert lines[2].split()[2:] == [
        f"{value:.3f}" for value in (*found.cosine[1], found.cosine[1][0])
    ]
    document = json.loads(cli("similarity", "task", "other", "--base=main", "--json"))
    assert document["format"] == "vcjax.similarity.1"
    assert document["sign_agreement"] == [[1, 0], [0, 1]]
    assert document["commits"] == [project.resolve(name).digest for name in ("task", "other")]
    picture = tmp_path / "similar.png"
    cli("similarity", "task", "other", f"--output={picture}", "--measure=overlap")
    assert picture.read_bytes().startswith(b"\x89PNG")
    figure = report.similarity_figure(found.names, found.cosine, "cosine")
    image = figure.axes[0].get_images()[0]
    assert np.allclose(np.asarray(image.get_array()), found.cosine)
    assert image.get_clim() == (-1, 1)


def test_similarity_of_files_needs_a_base(cli, tmp_path):
    file = tmp_path / "one.npz"
    formats.write(file, {"w": np.ones(2)})
    assert "--base" in cli("similarity", str(file), "main", code=2)


def test_figures_of_what_a_full_diff_holds(project):
    diff = project.diff("main", "task", stats="full")
    histogram = report.histogram_figure(diff, ["a/w"]).axes[0]
    change = next(change for change in diff.changes if change.path == "a/w")
    assert histogram.get_title() == "a/w"
    assert sum(change.stats["histogram"]["counts"]) == 96
    line = report.spectrum_figure(diff).axes[0].get_lines()[0]
    exact = np.linalg.svd(
        project.restore("task")["a"]["w"] - project.restore("main")["a"]["w"], compute_uv=False
    )
    assert np.allclose(line.get_ydata(), exact)
    with pytest.raises(VcjaxError, match="singular_values"):
        report.spectrum_figure(project.diff("main", "task"))
    with pytest.raises(VcjaxError, match="histogram"):
        report.histogram_figure(vcjax.diff({}, {}))

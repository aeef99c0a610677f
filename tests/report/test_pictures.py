"""Trajectories over history, and the pictures that matplotlib draws."""

import json
import sys

import numpy as np
import pytest

import vcjax
from vcjax import report
from vcjax.cli import main
from vcjax.errors import RevisionError, TreeError, VcjaxError

pytestmark = pytest.mark.smoke


@pytest.fixture
def walked(repo):
    """Ten commits: `w` goes along a line, `b` moves once, `late` is there from the fifth on."""
    for i in range(10):
        tree = {
            "w": np.array([3, 4], np.float32) * (i + 1),
            "b": np.array([i > 6], np.float32),
            "n": i,
        }
        if i >= 5:
            tree["late"] = np.array([i], np.float32)
        repo.commit(tree, f"step {i}", metadata={"step": 10 * i})
    return repo


def test_what_leaves_did(walked):
    found = walked.trajectory("HEAD~9..HEAD")
    assert [commit.message for commit in found.commits] == [f"step {i}" for i in range(10)]
    leaves = {leaf.path: leaf for leaf in found.leaves}
    assert set(leaves) == {"w", "b", "late"}
    assert leaves["w"].norm == pytest.approx([5.0 * (i + 1) for i in range(10)])
    assert leaves["w"].distance == pytest.approx([5.0 * i for i in range(10)])
    assert leaves["w"].step[0] is None
    assert leaves["w"].step[1:] == pytest.approx([5.0] * 9)
    assert leaves["b"].step == (None, 0, 0, 0, 0, 0, 0, 1, 0, 0)
    assert leaves["late"].distance == (None,) * 5 + (0, 1, 2, 3, 4)
    assert walked.trajectory("HEAD", "w").leaves == (leaves["w"],)
    assert walked.trajectory("HEAD~2..HEAD", "w").leaves[0].distance == (0, 5, 10)


def test_a_leaf_of_another_shape_has_no_distance(repo):
    for size in (1, 1, 2):
        repo.commit({"w": np.ones(size)})
    leaf = repo.trajectory().leaves[0]
    assert (leaf.distance, leaf.step) == ((0, 0, None), (None, 0, None))
    assert leaf.norm[2] == pytest.approx(2**0.5)


def test_pruned_commits_are_gaps(walked):
    walked.prune(["HEAD~1"], "test")
    assert walked.trajectory("HEAD~2..HEAD", "w").leaves[0].norm == (40, None, 50)


def test_what_cannot_be_traced(walked):
    walked.branch("side", "HEAD~3")
    walked.commit({"n": 1}, "other", branch="side")
    with pytest.raises(RevisionError, match="first parents"):
        walked.trajectory("main..side")
    with pytest.raises(TreeError, match="nowhere"):
        walked.trajectory("main", "nowhere")
    with pytest.raises(TreeError, match="array of numbers"):
        walked.trajectory("side~0..side")


def test_the_picture_of_a_trajectory_shows_these_numbers(walked):
    figure = report.trajectory_figure(walked.trajectory("HEAD~9..HEAD"))
    norm, distance, step = figure.axes
    lines = {line.get_label(): line for line in distance.get_lines()}
    assert list(np.asarray(lines["w"].get_ydata())) == pytest.approx([5.0 * i for i in range(10)])
    assert list(np.asarray(lines["w"].get_xdata())) == [10.0 * i for i in range(10)]
    assert np.isnan(np.asarray(lines["late"].get_ydata())[:5]).all()
    assert step.get_xlabel() == "training step"
    assert [axes.get_ylabel() for axes in (norm, step)] == ["norm", "change"]


def test_vcjax_plot(walked, tmp_path, capsys):
    run = ["plot", "w", "b", "--over=main~9..main", f"--repo={walked.url}"]
    for name, head in (("picture.png", b"\x89PNG"), ("picture.svg", b"<?xml")):
        file = tmp_path / name
        assert main([*run, f"--output={file}"]) == 0
        assert file.read_bytes().startswith(head)
        assert file.stat().st_size > 5000
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["b", "0", "1", "1", "1", walked.resolve("HEAD~2").digest[:8]]
    assert main([*run, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["format"] == "vcjax.plot.1"
    assert document["steps"] == list(range(0, 100, 10))
    assert main([*run, f"--output={tmp_path / 'picture.gif'}"]) == 1
    assert ".png" in capsys.readouterr().err


def test_without_matplotlib_the_error_says_what_to_install(walked, monkeypatch):
    trajectory = walked.trajectory("HEAD", "w")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(VcjaxError) as caught:
        report.trajectory_figure(trajectory)
    assert "vcjax[plots]" in str(caught.value.hint)


LAYERS = {
    "decoder/layers_3/attention/query/kernel": ("decoder/layers_3", "attention/query/kernel"),
    "layers/3/mlp/wi_0/kernel": ("layers/3", "mlp/wi_0/kernel"),
    "embed/embedding": ("embed", "embedding"),
    "kernel": ("", "kernel"),
    "Dense_0/kernel": ("Dense_0", "kernel"),
}


@pytest.mark.parametrize("path", LAYERS)
def test_layers_and_kinds(path):
    change = vcjax.LeafChange(path, "unchanged", None, None)
    found = report.heat_map(vcjax.TreeDiff((change,)))
    assert (found.rows[0], found.columns[0]) == LAYERS[path]


def test_the_heat_map_of_a_diff():
    rng = np.random.default_rng(0)
    old = {f"layers_{i}": {"w": rng.normal(size=5), "b": np.ones(2)} for i in range(3)}
    new = {f"layers_{i}": {"w": old[f"layers_{i}"]["w"] * 2, "b": np.ones(2)} for i in range(3)}
    new["layers_1"]["extra"] = np.ones(1)
    diff = vcjax.diff(old, new)
    found = report.heat_map(diff)
    assert found.rows == ("layers_0", "layers_1", "layers_2")
    assert found.columns[2] == "extra"
    values = [[cell and cell.value for cell in row] for row in found.cells]
    place = found.columns.index("w")
    assert [row[place] for row in values] == pytest.approx([1, 1, 1])
    assert [row[1 - place] for row in values] == [0, 0, 0]
    image = report.diff_figure(diff).axes[0].get_images()[0]
    assert np.asarray(image.get_array())[1, place] == pytest.approx(0)

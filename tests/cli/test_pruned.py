"""History whose data were let go says so, in every listing and figure."""

import json

import numpy as np
import pytest

import vcjax
from vcjax import Repository
from vcjax.cli import main
from vcjax.errors import PrunedError

POLICY = "max_to_keep=2"


@pytest.fixture
def repo(tmp_path, monkeypatch):
    """Six steps, of which the first four have no data."""
    monkeypatch.setenv("VCJAX_REPO", str(tmp_path / "repo"))
    made = Repository.init(tmp_path / "repo")
    for i in range(6):
        tree = {"w": np.full((300, 300), i, np.float32), "lr": i / 8}
        made.commit(tree, f"c{i}", metadata={"step": i})
    made.prune([f"step:{i}" for i in range(4)], POLICY)
    return made


@pytest.fixture
def shown(repo, capsys):
    def run(*words):
        capsys.readouterr()
        assert main(words) == 0
        return capsys.readouterr().out

    return run


@pytest.fixture
def document(shown):
    return lambda name, *words: json.loads(shown(name, "--json", *words))


def test_log_marks_what_has_no_data(shown):
    for words in (["--oneline"], ["--oneline", "--graph"]):
        lines = [line for line in shown("log", *words).splitlines() if " c" in line]
        assert ["(pruned)" in line for line in lines] == [False] * 2 + [True] * 4
    assert shown("log").count(f" UTC by {POLICY}") == 4
    assert shown("log", "--oneline", "--", "lr").count("(pruned)") == 4


def test_the_documents_say_why_and_when(document, repo):
    for words in (["log"], ["log", "--", "w"]):
        found = [commit["pruned"] for commit in document(*words)["commits"]]
        assert found[:2] == [None, None]
        assert [pruned["policy"] for pruned in found[2:]] == [POLICY] * 4
        assert all(pruned["time"] > 1.7e9 for pruned in found[2:])
    assert document("show", "step:1")["commit"]["pruned"]["policy"] == POLICY
    assert document("show", "step:5")["commit"]["pruned"] is None
    assert document("ls", "step:1")["pruned"]["policy"] == POLICY
    assert document("ls")["pruned"] is None
    assert document("status")["pruned"] is None
    (commit,) = document("blame", "step:1", "w")["commits"]
    assert commit["pruned"]["policy"] == POLICY


def test_show_ls_blame_and_status_say_so(shown, repo):
    assert f"UTC by {POLICY}" in shown("show", "step:1")
    assert f"UTC by {POLICY}" in shown("ls", "step:1")
    assert "(pruned)" in shown("blame", "step:1")
    for words in (["show"], ["ls"], ["blame"], ["status"]):
        assert "pruned" not in shown(*words)
    repo.switch(repo.resolve("step:2").digest, detach=True)
    assert "its data are gone: pruned on" in shown("status")


def test_a_diff_compares_by_digest_and_says_why_there_are_no_figures(shown, document, repo):
    text = shown("diff", "step:1", "step:5")
    assert "float32[300,300]" in text
    assert "float 0.125 → 0.625" in text, "small values are in the manifest"
    assert "no figures: step 1 (commit " in text
    assert f"UTC by {POLICY}" in text
    for words in (["--stat"], ["--depth=1"], ["--full"], ["--base=step:0"], ["--markdown"]):
        assert POLICY.replace("_", "\\_") in shown("diff", "step:1", "step:2", *words).replace(
            POLICY, POLICY.replace("_", "\\_")
        )
    found = document("diff", "step:1", "step:2")
    assert len(found["unread"]) == 2
    assert {change["path"]: change["stats"] for change in found["changes"]} == {
        "lr": None,
        "w": None,
    }
    whole = document("diff", "step:4", "step:5")
    assert whole["unread"] == []
    assert whole["changes"][1]["stats"]["changed"] == 90000


def test_python_is_told_too(repo, tmp_path):
    diff = repo.diff("step:1", "step:4")
    assert diff.counts["changed"] == 2
    assert len(diff.unread) == 1
    assert "no figures: step 1" in str(diff)
    assert POLICY in diff._repr_html_()
    diff.to_html(tmp_path / "page.html")
    assert f"UTC by {POLICY}" in (tmp_path / "page.html").read_text("utf-8")
    assert repo.diff("step:1", "step:4", stats=False).unread == (), "nothing was to be read"
    assert repo.diff("step:4", "step:5", base="step:0").unread
    assert diff.matching("w").unread == diff.unread
    assert repo.diff("step:4", "step:5", stats="full").changes[1].stats["histogram"]


def test_similarity_refuses(repo, capsys):
    with pytest.raises(PrunedError, match=r"step 3 .* has no data any more"):
        repo.similarity(["step:4", "step:5"], base="step:3")
    assert main(["similarity", "step:4", "step:5", "--base=step:3"]) == 1
    assert "step 3 (commit " in capsys.readouterr().err


def test_plot_says_which_commits_its_figures_are_of(shown, document, repo):
    first, last = repo.resolve("step:4").digest[:8], repo.resolve("step:5").digest[:8]
    text = shown("plot", "w")
    assert f"over 2 of 6 commits, {first} to {last}: the data of 4 were pruned" in text
    found = document("plot", "w")
    assert found["pruned"] == [repo.resolve(f"step:{i}").digest for i in range(4)]
    trajectory = repo.trajectory(paths="w")
    assert [commit.step for commit in trajectory.measured] == [4, 5]
    assert "over 2 commits" in shown("plot", "w", "--over=step:4..HEAD")
    assert "none of 2 commits" in shown("plot", "w", "--over=step:0..step:1")


def test_stats_compare_what_is_stored_with_full_copies_of_that(shown, document):
    found = document("stats")
    assert (found["commits"], found["pruned"]) == (6, 4)
    assert found["leaves"] == 4
    assert found["logical_bytes"] == 2 * 360_000
    assert found["ratio"] < 1.1
    assert "2 commits (of 6: 4 have no data any more)" in shown("stats")


def test_the_norm_of_a_change_is_not_known_beside_what_is_gone(document):
    found = document("log", "--stats", "--", "w")["commits"]
    assert [commit["touched"]["l2"] is None for commit in found] == [False] + [True] * 5


def test_a_manager_that_keeps_two_steps_marks_the_others(tmp_path, capsys):
    options = vcjax.CheckpointManagerOptions(max_to_keep=2)
    with vcjax.CheckpointManager(tmp_path / "run", options) as manager:
        for step in range(4):
            manager.save(step, {"w": np.full(1000, step)})
    assert main(["log", "--oneline", f"--repo={tmp_path / 'run'}"]) == 0
    assert capsys.readouterr().out.count("(pruned)") == 2

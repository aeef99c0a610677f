"""What a debugger and a notebook show of commits, logs, manifests, blame, diffs, managers."""

import numpy as np
import pytest

import vcjax
from vcjax import Repository
from vcjax.history.listing import CELL_WIDTH, html_listing, text_listing


@pytest.fixture
def repo(tmp_path):
    made = Repository.init(f"memory://{tmp_path.name}")
    tree = {f"l{i:02}": np.full(64, i, np.float32) for i in range(40)}
    made.commit(tree, "one <b>")
    for i in range(30):
        made.commit(
            {**tree, "l00": tree["l01"] + i}, f"commit {i}\nand more", metrics={"loss": 0.5}
        )
    return made


def short(value, lines=12, width=110):
    text = repr(value)
    rows = text.splitlines()
    assert len(rows) <= lines
    assert max(map(len, rows)) <= width
    assert " at 0x" not in text
    return text


def test_of_commits(repo):
    commit = repo.resolve("HEAD")
    assert short(commit, 1).startswith(f"<Commit {commit.digest[:8]} ")
    assert "'commit 29'" in repr(commit)
    assert "loss" in commit._repr_html_()


def test_of_manifests(repo):
    manifest = repo.manifest()
    assert "40 leaves, 10,240 bytes" in short(manifest)
    assert "… and 30 more" in repr(manifest)
    assert "float32[64]" in manifest._repr_html_()


def test_of_logs_which_lose_nothing_by_it(repo):
    log = repo.log()
    first = short(log)
    assert first == repr(log)
    assert "commit 29" in first
    assert "… and more" in first
    assert "one &lt;b&gt;" not in log._repr_html_(), "the oldest is not among the first"
    assert len(list(log)) == 31
    assert repr(log) == "<CommitLog>"


def test_a_log_is_an_iterator_as_before(repo):
    log = repo.log(limit=3)
    assert next(log).summary == "commit 29"
    assert [commit.summary for commit in log] == ["commit 28", "commit 27"]
    with pytest.raises(vcjax.errors.RevisionError):
        list(repo.log("nothing"))
    assert "no commit is called 'nothing'" in repr(repo.log("nothing"))


def test_of_blame(repo):
    blame = repo.blame()
    assert list(blame) == blame
    assert short(blame).startswith("<Blame: 40 leaves")
    assert "one &lt;b&gt;" in blame._repr_html_()
    assert "chunk 0" in repr(repo.blame(chunks=True))


def test_of_diffs(repo):
    diff = repo.diff("HEAD~30", "HEAD")
    assert short(diff).startswith("<TreeDiff: 1 changed, 39 unchanged>")
    many = vcjax.diff({}, {f"l{i}": i for i in range(50)})
    assert "… and 42 more" in short(many)
    assert len(str(many).splitlines()) == 51


def test_of_heads_handles_and_managers(repo, tmp_path):
    assert repr(repo.head) == f"<Head on main, at {repo.resolve('HEAD').digest[:8]}>"
    assert repr(repo.merges) == f"<Merges of {repo!r}>"
    short(repo.processes, 1)
    with vcjax.CheckpointManager(tmp_path / "run") as manager:
        assert repr(manager).endswith("run: no steps>")
        manager.save(3, {"w": np.ones(3)}, metrics={"loss": 0.5})
        manager.wait_until_finished()
        assert short(manager, 1, 300).endswith("run: 1 steps, the latest 3>")
        assert "loss" in manager._repr_html_()


def test_head_knows_where_it_is(repo):
    tip = repo.resolve("HEAD").digest
    assert (repo.head.branch, repo.head.commit, repo.head.tip) == ("main", None, tip)
    repo.switch(tip, detach=True)
    assert (repo.head.branch, repo.head.commit, repo.head.tip) == (None, tip, tip)
    assert repr(repo.head) == f"<Head detached, at {tip[:8]}>"
    assert repr(Repository.init(f"{repo.url}-empty").head) == "<Head on main, without a commit>"


def test_listings_cut_and_escape():
    text = text_listing("t", [("a\nb", "x" * 100)] * 12)
    assert "\\n" in text
    assert max(map(len, text.splitlines())) < CELL_WIDTH + 12
    assert text.endswith("… and 2 more")
    assert "<b>" not in html_listing("t", ("c",), [("<b>x",)]).replace("<b>t</b>", "")

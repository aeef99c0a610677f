"""Pruning: data of commits go, and nothing else, whatever else happens to the repository."""

import secrets

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import vcjax
from vcjax.errors import ConflictError, PrunedError, StorageError

from ..leaf_kinds import assert_restores, tree


def place():
    return f"memory://{secrets.token_hex(8)}"


def test_prune_says_what_it_did(repo):
    commits = [repo.commit(tree(value)) for value in range(3)]
    report = repo.prune(commits, "a test")
    assert report.commits == (commits[0].digest, commits[1].digest)
    assert report.spared == (commits[2].digest,)
    assert len(report.collected.objects) == 4  # two packs, two leaf objects
    assert report.collected.nbytes > 2 * 80_000
    nothing = repo.prune(["HEAD"], "a test")
    assert (nothing.commits, nothing.collected.objects) == ((), ())
    with pytest.raises(PrunedError, match="a test"):
        repo.restore(commits[0])
    assert_restores(repo.restore(), 2)
    assert repo.fsck().ok


def test_pruning_again_finishes_what_was_interrupted(repo, monkeypatch):
    first = repo.commit(tree(0))
    repo.commit(tree(1))
    with monkeypatch.context() as patch:
        patch.setattr(repo.store, "delete", lambda keys: (_ for _ in ()).throw(StorageError("off")))
        with pytest.raises(StorageError):
            repo.prune([first], "a test")
    assert len(repo.prune([first], "a test").collected.objects) == 2
    assert repo.fsck().ok


def test_another_process_may_branch_between_prunes(url):
    """What one pruner remembers must not hide what another process has done since."""
    ours, theirs = vcjax.Repository.init(url), vcjax.Repository.open(url)
    first = ours.commit(tree(0))
    ours.commit(tree(1))
    ours.commit(tree(2))
    ours.prune(["HEAD~1"], "a test")
    theirs.branch("side", at=first)
    side = theirs.commit({**tree(0), "inline": 5}, branch="side")
    theirs.branch("gone", at=first)
    gone = theirs.commit({**tree(0), "inline": 6}, branch="gone")
    theirs.delete_branch("gone")
    assert not ours.prune([first], "a test").collected.objects
    theirs.delete_branch("side")
    assert not ours.prune([first, side], "a test").collected.objects
    np.testing.assert_array_equal(ours.restore(gone)["own"], tree(0)["own"])
    assert len(ours.prune([gone], "a test").collected.objects) == 2
    assert ours.fsck().ok


def test_another_process_may_prune(url):
    """And be killed before it has deleted anything."""
    ours, theirs = vcjax.Repository.init(url), vcjax.Repository.open(url)
    first = ours.commit(tree(0))
    second = ours.commit({**tree(0), "inline": 5})
    ours.commit(tree(1))
    ours.prune([], "a test")
    theirs.prunings.mark([second.digest], "another test")
    assert len(ours.prune([first], "a test").collected.objects) == 2
    ours.commit(tree(0))
    assert_restores(theirs.restore(), 0)
    assert ours.fsck().ok


@pytest.mark.parametrize("background", [False, True])
def test_a_commit_does_not_count_on_what_a_pruned_tip_had(repo, background):
    """Undo leads back to a commit whose data are gone; the next one stores them anew."""
    repo.commit(tree(0))
    repo.commit({**tree(1), "fixed": np.zeros(9)})
    repo.prune(["HEAD~1"], "a test")
    repo.undo()
    if background:
        repo.commit_async(tree(0)).result()
    else:
        repo.commit(tree(0))
    assert_restores(repo.restore(), 0)
    assert repo.fsck().ok


def test_a_commit_that_is_overtaken_by_a_pruned_tip(repo, monkeypatch):
    first = repo.commit(tree(0))
    repo.commit(tree(1))
    repo.prune([first], "a test")
    hold = repo._writer.committer.publish

    def overtaken(*args):
        monkeypatch.undo()
        repo.branch("main", at=first, force=True)
        return hold(*args)

    monkeypatch.setattr(repo._writer.committer, "publish", overtaken)
    repo.refresh()
    with pytest.raises(ConflictError, match=r"whose data are gone: pruned on .* by a test"):
        repo.commit({**tree(1), "own": tree(0)["own"]})
    repo.refresh()
    repo.commit(tree(0))
    assert_restores(repo.restore(), 0)
    assert repo.fsck().ok


class PruningMachine(RuleBasedStateMachine):
    """Commits, branches, undo and pruning by two repository objects on one place."""

    def __init__(self):
        super().__init__()
        url = place()
        self.repos = [vcjax.Repository.init(url), vcjax.Repository.open(url)]
        self.values = {}  # digest -> tree
        self.pruned = set()

    def head(self):
        return self.repos[0].head.branch

    def unborn(self):
        return self.head() not in self.repos[0].branches

    @rule(who=st.integers(0, 1), p=st.integers(0, 2), q=st.integers(0, 2), chunk=st.integers(0, 4))
    def commit(self, who, p, q, chunk):
        array = np.zeros((3, 1 << 18), np.float32)  # three chunks: differences to a base
        array[min(chunk, 2)] = chunk
        content = {"p": np.full(2_000, p), "q": np.full(20_000, q), "r": array}
        repo = self.repos[who]
        repo.refresh()
        digest = repo.commit(content).digest
        self.values[digest] = content

    @rule(who=st.integers(0, 1), name=st.sampled_from("abc"), back=st.integers(0, 3))
    def branch(self, who, name, back):
        if not self.unborn():
            log = list(self.repos[who].log())
            self.repos[who].branch(name, log[min(back, len(log) - 1)], force=True)

    @rule(who=st.integers(0, 1), name=st.sampled_from("abc"))
    def switch(self, who, name):
        if name in self.repos[who].branches:
            self.repos[who].switch(name)

    @rule(who=st.integers(0, 1), name=st.sampled_from("abc"))
    def delete_branch(self, who, name):
        if name in self.repos[who].branches and name != self.head():
            self.repos[who].delete_branch(name)

    @precondition(lambda self: not self.unborn())
    @rule(who=st.integers(0, 1))
    def undo(self, who):
        self.repos[who].undo()

    @precondition(lambda self: self.values)
    @rule(who=st.integers(0, 1), data=st.data())
    def prune(self, who, data):
        chosen = data.draw(st.lists(st.sampled_from(sorted(self.values)), max_size=3))
        refs = {*self.repos[who].branches.values()}
        report = self.repos[who].prune(chosen, "a test")
        assert set(report.commits) == set(chosen) - refs
        assert set(report.spared) == set(chosen) & refs
        self.pruned |= set(report.commits)

    @rule(who=st.integers(0, 1))
    def gc(self, who):
        self.repos[who].gc(unsafe=True)

    @invariant()
    def the_unpruned_restore(self):
        for digest, content in self.values.items():
            if digest not in self.pruned:
                restored = self.repos[0].restore(digest)
                for name, array in content.items():
                    np.testing.assert_array_equal(restored[name], array)

    @invariant()
    def all_is_well(self):
        report = self.repos[0].fsck()
        assert report.ok, report.problems


TestPruning = PruningMachine.TestCase
TestPruning.settings = settings(
    max_examples=15,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)

"""A repository against a model of it in memory, over random sequences of operations."""

import secrets
import tempfile
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

import vcjax

NAMES = st.sampled_from(["main", "a", "b/c"])
TREES = st.dictionaries(st.sampled_from("pqr"), st.integers(0, 2), max_size=3)
SIZES = {"p": 4, "q": 2_000, "r": 20_000}  # inline, in a pack, an object


def real(tree):
    """The PyTree that a model's tree stands for."""
    return {name: np.full(SIZES[name], value, np.float32) for name, value in tree.items()}


def model_of(tree):
    for name, array in tree.items():
        assert array.shape == (SIZES[name],)
        assert (array == array[0]).all()
    return {name: int(array[0]) for name, array in tree.items()}


def three_way(base, ours, theirs, side):
    """The merge of dicts of numbers, conflicts settled by `side`, key by key."""
    merged = {}
    for name in {*base, *ours, *theirs}:
        b, o, t = base.get(name), ours.get(name), theirs.get(name)
        value = t if o == b else o if t in (b, o) else {"ours": o, "theirs": t}[side]
        if value is not None:
            merged[name] = value
    return merged


@dataclass
class Branch:
    """The states that a branch has had: commit digests, None for a deletion.

    `equals` says of each which state it is: itself, or the one that an undo went
    back to, so that undoing again goes one before that.
    """

    states: list = field(default_factory=list)
    equals: list = field(default_factory=list)

    @property
    def tip(self):
        return self.states[-1] if self.states else None

    def move(self, digest):
        self.equals.append(len(self.states))
        self.states.append(digest)

    def undo(self):
        target = self.equals[-1] - 1
        if target < 0 or self.states[target] is None:
            self.move(None)
        else:
            self.states.append(self.states[target])
            self.equals.append(self.equals[target])


class RepositoryMachine(RuleBasedStateMachine):
    """Every rule acts on both; every invariant compares them."""

    def place(self):
        return f"memory://{secrets.token_hex(8)}"

    def __init__(self):
        super().__init__()
        self.url = self.place()
        self.repo = vcjax.Repository.init(self.url)
        self.trees = {}  # commit digest -> tree
        self.parents = {}
        self.branch = {}  # name -> Branch
        self.tags = {}  # name -> commit digest
        self.head = "main"

    def tip(self, name):
        return self.branch[name].tip if name in self.branch else None

    def existing(self):
        return sorted(name for name in self.branch if self.tip(name) is not None)

    def moved(self, name, digest):
        self.branch.setdefault(name, Branch()).move(digest)

    def recorded(self, commit, tree):
        self.trees[commit.digest] = tree
        self.parents[commit.digest] = commit.parents

    def ancestors(self, digest):
        found, queue = set(), [digest]
        while queue:
            one = queue.pop()
            if one not in found:
                found.add(one)
                queue.extend(self.parents[one])
        return found

    @rule(tree=TREES)
    def commit(self, tree):
        before = self.tip(self.head)
        commit = self.repo.commit(real(tree), "commit")
        assert commit.parents == (() if before is None else (before,))
        self.recorded(commit, tree)
        self.moved(self.head, commit.digest)

    @rule(name=NAMES)
    def make_branch(self, name):
        if self.tip(self.head) is None or self.tip(name) is not None:
            with pytest.raises(vcjax.VcjaxError):
                self.repo.branch(name)
            return
        self.repo.branch(name)
        self.moved(name, self.tip(self.head))

    @rule(name=NAMES)
    def delete_branch(self, name):
        if name == self.head or self.tip(name) is None:
            with pytest.raises(vcjax.errors.RefError):
                self.repo.delete_branch(name)
            return
        self.repo.delete_branch(name)
        self.moved(name, None)

    @rule(name=NAMES)
    def switch(self, name):
        if self.tip(name) is None:
            with pytest.raises(vcjax.errors.RefError):
                self.repo.switch(name)
            return
        self.repo.switch(name)
        self.head = name

    @rule(name=st.sampled_from(["v1", "v2"]))
    def tag(self, name):
        if self.tip(self.head) is None or name in self.tags:
            with pytest.raises(vcjax.VcjaxError):
                self.repo.tag(name)
            return
        self.repo.tag(name)
        self.tags[name] = self.tip(self.head)

    @rule()
    def undo(self):
        if self.tip(self.head) is None:
            with pytest.raises(vcjax.errors.RefError):
                self.repo.undo()
            return
        state = self.repo.undo()
        self.branch[self.head].undo()
        assert (None if state is None else state.commit) == self.tip(self.head)

    @rule(name=NAMES, side=st.sampled_from(["ours", "theirs"]))
    def merge(self, name, side):
        ours, theirs = self.tip(self.head), self.tip(name)
        if ours is None or theirs is None:
            with pytest.raises(vcjax.VcjaxError):
                self.repo.merge("HEAD", name, resolve=side)
            return
        mine, yours = self.ancestors(ours), self.ancestors(theirs)
        common = mine & yours
        best = [c for c in common if not any(c in self.ancestors(d) - {d} for d in common)]
        merged = self.repo.merge("HEAD", name, resolve=side)
        if theirs in mine:
            assert merged.digest == ours
        elif ours in yours:
            assert merged.digest == theirs
            self.moved(self.head, theirs)
        else:
            assert merged.parents == (ours, theirs)
            assert merged.provenance is not None
            assert sorted(merged.provenance["bases"]) == sorted(best)
            tree = model_of(self.repo.restore(merged))
            if len(best) <= 1:
                base = self.trees[best[0]] if best else {}
                assert tree == three_way(base, self.trees[ours], self.trees[theirs], side)
            self.recorded(merged, tree)
            self.moved(self.head, merged.digest)

    @rule()
    def collect(self):
        self.repo.gc(unsafe=True)

    @rule()
    def reopen(self):
        self.repo = vcjax.Repository.open(self.url)

    @invariant()
    def refs_are_equal(self):
        assert self.repo.branches == {name: self.tip(name) for name in self.existing()}
        assert self.repo.tags == self.tags
        assert self.repo.head.branch == self.head

    @invariant()
    def trees_are_equal(self):
        for digest in {*self.repo.branches.values(), *self.tags.values()}:
            assert model_of(self.repo.restore(digest)) == self.trees[digest]

    @invariant()
    def logs_are_equal(self):
        for name, branch in self.branch.items():
            states = self.repo.refs.log(f"refs/heads/{name}")
            expected = [digest for digest in reversed(branch.states) if digest is not None]
            assert [state.commit for state in states] == expected

    @invariant()
    def all_is_well(self):
        report = self.repo.fsck()
        assert report.ok, report.problems


class FolderMachine(RepositoryMachine):
    """The same in a folder."""

    def place(self):
        self.folder = tempfile.TemporaryDirectory()
        return f"{self.folder.name}/repo"

    def teardown(self):
        self.folder.cleanup()


TestInMemory = RepositoryMachine.TestCase
TestInMemory.settings = settings(
    max_examples=25,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestInFolder = FolderMachine.TestCase
TestInFolder.settings = settings(TestInMemory.settings, max_examples=8)

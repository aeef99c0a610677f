"""`Repository.blame` and `log(paths=)`: who changed which leaf, from manifests alone."""

import json
import random
from dataclasses import replace

import numpy as np
import pytest

from vcjax import Repository
from vcjax.errors import RevisionError, TreeError
from vcjax.storage import Store

ROWS = 1 << 20
"""Rows of 16 bytes: 16 MiB, four chunks."""


def told(repo, revision="HEAD", **options):
    """{leaf path: message of the commit that is to blame}."""
    found = repo.blame(revision, **options)
    return {leaf.path: leaf.commit.message for leaf in found}


def array(*numbers):
    return np.array(numbers, np.float32)


def test_each_leaf_is_of_the_commit_that_last_changed_it(repo):
    repo.commit({"a": {"w": array(1), "b": array(1)}, "n": 3}, "one")
    repo.commit({"a": {"w": array(2), "b": array(1)}, "n": 3}, "two")
    repo.commit({"a": {"w": array(2), "b": array(1)}, "n": 4, "new": "text"}, "three")
    assert told(repo) == {"a/b": "one", "a/w": "two", "n": "three", "new": "three"}
    assert told(repo, "HEAD~1") == {"a/b": "one", "a/w": "two", "n": "one"}
    assert told(repo, paths=["a"]) == {"a/b": "one", "a/w": "two"}
    with pytest.raises(TreeError, match="nowhere"):
        repo.blame(paths=["nowhere"])


def test_a_leaf_that_went_back_to_an_old_content_is_of_the_commit_that_took_it_back(repo):
    for message, value in (("one", 1), ("two", 2), ("back", 1)):
        repo.commit({"w": array(value), "same": array(5)}, message)
    assert told(repo) == {"same": "one", "w": "back"}


def test_moves_are_followed(repo):
    repo.commit({"layers_0": {"w": array(1), "b": array(0)}, "head": array(9)}, "one")
    repo.commit({"layers_0": {"w": array(1), "b": array(7)}, "head": array(9)}, "two")
    repo.commit({"layers_1": {"w": array(1), "b": array(7)}, "head": array(9)}, "renamed")
    found = {leaf.path: leaf for leaf in repo.blame()}
    assert found["layers_1/w"].commit.message == "one"
    assert found["layers_1/w"].old_path == "layers_0/w"
    assert found["layers_1/b"].commit.message == "two"
    assert found["head"].old_path == "head"


def test_of_equal_leaves_each_moves_from_its_namesake(repo):
    zero = array(0, 0)
    repo.commit({"a": {"bias": zero, "scale": zero + 1}}, "one")
    repo.commit({"a": {"bias": zero, "scale": zero}}, "two")
    repo.commit({"b": {"bias": zero, "scale": zero}}, "renamed")
    assert told(repo) == {"b/bias": "one", "b/scale": "two"}


def test_layers_behind_one_that_was_put_in_are_followed(repo):
    layers = [{"w": array(i), "b": array(0)} for i in range(4)]
    repo.commit({"layers": layers}, "one")
    layers[2] = {"w": array(22), "b": array(0)}
    repo.commit({"layers": layers}, "two")
    repo.commit({"layers": [layers[0], {"w": array(9), "b": array(5)}, *layers[1:]]}, "put in")
    found = {leaf.path: leaf for leaf in repo.blame()}
    by = {path: leaf.commit.message for path, leaf in found.items() if path.endswith("w")}
    assert list(by.values()) == ["one", "put in", "one", "two", "one"]
    assert found["layers/3/w"].old_path == "layers/2/w"


def test_zeros_that_come_and_go_are_no_move(repo):
    zero, one = array(0), array(1)
    repo.commit({"a": zero, "b": one, "c": zero, "d": array(4)}, "one")
    repo.commit({"a": array(3), "b": zero, "c": zero, "d": array(4)}, "two")
    assert told(repo) == {"a": "two", "b": "two", "c": "one", "d": "one"}


def test_a_copy_is_no_move(repo):
    repo.commit({"a": array(1)}, "one")
    repo.commit({"a": array(1), "b": array(1)}, "copied")
    assert told(repo) == {"a": "one", "b": "copied"}


@pytest.fixture
def merged(repo):
    """Two branches changed a leaf each and both a third; the merge makes a fourth."""
    base = {"ours": array(0), "theirs": array(0), "both": array(0), "rest": array(0)}
    repo.commit(base, "base")
    repo.branch("side")
    repo.commit({**base, "ours": array(1), "both": array(1)}, "ours")
    repo.commit({**base, "theirs": array(2), "both": array(3)}, "theirs", branch="side")
    repo.merge("main", "side", method="average", message="merge")
    return repo


def test_a_merge_is_to_blame_for_what_it_made(merged):
    assert told(merged) == {"both": "merge", "ours": "ours", "rest": "base", "theirs": "theirs"}


@pytest.mark.parametrize("container", [list, tuple, dict], ids=lambda kind: kind.__name__)
def test_containers(repo, container):
    def tree(*values):
        values = [{"k/%": array(value)} for value in values]
        return container(enumerate(values)) if container is dict else container(values)

    repo.commit(tree(1, 2), "one")
    repo.commit(tree(1, 3), "two")
    assert told(repo) == {"0/k%2F%25": "one", "1/k%2F%25": "two"}


def test_a_tree_that_is_one_leaf(repo):
    repo.commit(array(1), "one")
    repo.commit(array(2), "two")
    repo.commit({"w": array(2)}, "wrapped")
    assert told(repo, "HEAD~1") == {"": "two"}
    assert told(repo) == {"w": "two"}


def test_chunks(repo):
    content = np.zeros((ROWS, 4), np.float32)
    repo.commit({"w": content, "small": array(1)}, "one")
    content[-1] = 1
    repo.commit({"w": content, "small": array(1)}, "end")
    content[0] = 1
    repo.commit({"w": content, "small": array(2)}, "begin")
    assert told(repo)["w"] == "begin"
    found = [(x.path, x.chunk, x.chunks, x.commit.message) for x in repo.blame(chunks=True)]
    assert found == [
        ("small", 0, 1, "begin"),
        ("w", 0, 4, "begin"),
        ("w", 1, 4, "one"),
        ("w", 2, 4, "one"),
        ("w", 3, 4, "end"),
    ]
    repo.commit({"v": content.astype(np.float64)}, "wider")
    assert {leaf.commit.message for leaf in repo.blame(chunks=True)} == {"wider"}


def test_a_random_history_as_by_going_through_all_of_it(repo):
    """Against the plain definition: the commit at which following a leaf ends."""
    rng = random.Random(0)
    names = [f"{a}/{b}" for a in "xyz" for b in "uvw"]
    tips = [repo.commit(_tree(dict.fromkeys(names, 0)), "root")]
    states = {tips[0].digest: dict.fromkeys(names, 0)}
    for step in range(1, 40):
        first = rng.choice(tips[-4:])
        state = dict(states[first.digest])
        parents = [first]
        if rng.random() < 0.3 and (second := rng.choice(tips[-6:])).digest != first.digest:
            parents.append(second)
            state = {n: rng.choice([v, states[second.digest][n]]) for n, v in state.items()}
        for name in rng.sample(names, rng.randrange(3)):
            state[name] = step
        commit = _commit(repo, state, parents, f"step {step}")
        tips.append(commit)
        states[commit.digest] = state
    for tip in tips[-5:]:
        for leaf in repo.blame(tip):
            assert leaf.commit.digest == _followed(repo, states, tip, leaf.path)


def _tree(state):
    found = {}
    for name, value in state.items():
        module, leaf = name.split("/")
        found.setdefault(module, {})[leaf] = array(value)
    return found


def _commit(repo, state, parents, message):
    """A commit with any parents, which may say whatever they like."""
    repo.branch("scratch", parents[0], force=True)
    made = repo.commit(_tree(state), message, branch="scratch")
    fresh = replace(
        made,
        parents=tuple(parent.digest for parent in parents),
        generation=1 + max(parent.generation for parent in parents),
    )
    return repo.history.write_commit(fresh)


def _followed(repo, states, tip, path):
    commit = tip
    while True:
        parents = [repo.resolve(digest) for digest in commit.parents]
        value = states[commit.digest][path]
        same = [parent for parent in parents if states[parent.digest][path] == value]
        if not same:
            return commit.digest
        commit = same[0]


@pytest.fixture
def reads(monkeypatch):
    """The keys that are read from the store, by prefix."""
    keys = []
    read, ranged = Store.read, Store.read_versioned
    monkeypatch.setattr(Store, "read", lambda self, key: keys.append(key) or read(self, key))
    monkeypatch.setattr(
        Store, "read_versioned", lambda self, key: keys.append(key) or ranged(self, key)
    )
    return keys


def test_no_leaf_data_are_read(url, reads, monkeypatch):
    repo = Repository.init(url)
    big = np.arange(50_000, dtype=np.float32)
    for step in range(3):
        repo.commit({"w": big + step, "b": big}, f"step {step}")
    fresh = Repository.open(url)
    monkeypatch.setattr(fresh.objects, "read", None)  # whoever asks for data fails
    reads.clear()
    assert told(fresh, chunks=True) == {"b": "step 0", "w": "step 2"}
    assert [c.message for c in fresh.log(paths="w")] == ["step 2", "step 1", "step 0"]
    assert not [key for key in reads if key.startswith(("leaves/", "packs/"))]


def test_equal_trees_are_not_read_again(repo, monkeypatch):
    """of 300 commits of which 3 changed anything, the manifests of those are read."""
    repo.commit({"w": array(0), "b": array(0)}, "step 0")
    tip = repo.resolve("HEAD")
    for step in range(1, 300):
        fresh = replace(tip, parents=(tip.digest,), generation=tip.generation + 1)
        if step in (100, 200):
            repo.branch("main", tip, force=True)
            repo.commit({"w": array(step), "b": array(0)}, f"step {step}")
            tip = repo.resolve("HEAD")
        else:
            tip = repo.history.write_commit(replace(fresh, message=f"step {step}"))
    asked = []
    read = type(repo.history).manifest_bytes
    monkeypatch.setattr(
        type(repo.history), "manifest_bytes", lambda self, d: asked.append(d) or read(self, d)
    )
    assert told(repo, tip) == {"b": "step 0", "w": "step 200"}
    assert len(asked) == 3
    assert [c.message for c in repo.log(tip, paths="w")] == ["step 200", "step 100", "step 0"]


# -- log -- PATH ---------------------------------------------------------------


def test_only_commits_that_changed_the_leaves_are_listed(repo):
    repo.commit({"a": {"w": array(1)}, "b": array(1)}, "one")
    repo.commit({"a": {"w": array(1)}, "b": array(2, 3)}, "two")
    repo.commit({"a": {"w": array(2)}, "b": array(2, 3)}, "three")
    repo.commit({"c": {"w": array(2)}}, "four")

    def messages(*globs, **options):
        return [commit.message for commit in repo.log(paths=list(globs), **options)]

    assert messages("b") == ["four", "two", "one"]
    assert messages("a") == ["four", "three", "one"]
    assert messages("*/w") == ["four", "three", "one"]
    assert messages("*/w", limit=2) == ["four", "three"]
    assert messages("nowhere") == []
    touches = {touch.commit.message: touch for touch in repo.touches(paths="**")}
    assert touches["four"].counts == {"added": 0, "removed": 1, "changed": 0, "moved": 1}
    assert touches["four"].nbytes == 12
    assert touches["one"].counts["added"] == 2


def test_merges_are_simplified_as_by_git(merged):
    def messages(path, **options):
        return [commit.message for commit in merged.log(paths=path, **options)]

    assert messages("ours") == ["ours", "base"]
    assert messages("theirs") == ["theirs", "base"]
    assert messages("both") == ["merge", "theirs", "ours", "base"]
    assert messages("rest") == ["base"]
    assert messages("theirs", first_parent=True) == ["merge", "base"]
    walk = merged.touches(paths="both")
    parents = {touch.commit.message: touch.commit for touch in walk}
    names = {
        name: [merged.resolve(d).message for d in walk.parents(c)] for name, c in parents.items()
    }
    assert names == {"merge": ["ours", "theirs"], "ours": ["base"], "theirs": ["base"], "base": []}


def test_ranges(merged):
    def messages(*revisions, **options):
        return [commit.message for commit in merged.log(*revisions, **options)]

    assert messages("side..main") == ["merge", "ours"]
    assert messages("main..side") == []
    assert messages("main~1..") == ["merge", "theirs"]
    assert messages("main~2..main", paths="both") == ["merge", "theirs", "ours"]
    assert messages("main~1..main", "side", paths="both") == ["merge", "theirs"]
    with pytest.raises(RevisionError, match="three dots"):
        messages("side...main")
    with pytest.raises(RevisionError) as caught:
        merged.resolve("side..main")
    assert "range" in str(caught.value.hint)


# -- the commands --------------------------------------------------------------


@pytest.fixture
def cli(cli_of, merged):
    return cli_of(merged)


def test_vcjax_blame(cli, merged):
    lines = cli("blame").splitlines()
    assert len(lines) == 5
    assert lines[2].split()[:2] == [merged.resolve("main~1").digest[:8], "ours"]
    document = json.loads(cli("blame", "side", "the*", "--chunks", "--json"))
    assert document["format"] == "vcjax.blame.1"
    assert [leaf["path"] for leaf in document["leaves"]] == ["theirs"]
    assert document["leaves"][0]["commit"] == merged.resolve("side").digest
    assert document["leaves"][0]["chunk"] == 0


def test_runs_of_chunks_are_one_line(cli, merged):
    content = np.zeros((ROWS, 4), np.float32)
    merged.commit({"w": content}, "zeros")
    content[-1] = 1
    merged.commit({"w": content}, "end")
    rows = [line.split() for line in cli("blame", "--chunks").splitlines()[1:]]
    assert [row[2] for row in rows] == ["[0:786432]", "[786432:1048576]"]


def test_vcjax_log_of_paths(cli):
    out = cli("log", "--oneline", "--", "both", "theirs")
    assert [line.split()[-4:] for line in out.splitlines()[:1]] == [["2", "changed,", "8", "B"]]
    assert len(out.splitlines()) == 4
    assert len(cli("log", "--oneline", "main~1", "--", "both").splitlines()) == 2
    graph = cli("log", "--oneline", "--graph", "--", "both")
    assert "|/" in graph
    full = cli("log", "--stats", "--", "both")
    assert "Changed:" in full
    assert "l2 3" in full
    document = json.loads(cli("log", "--json", "--stats", "--", "both"))
    assert [commit["touched"]["l2"] for commit in document["commits"]] == [1, 3, 1, None]
    assert document["commits"][0]["touched"]["nbytes"] == 4


def test_a_glob_without_dashes_gets_a_hint(cli):
    assert "`--`" in cli("log", "both", code=1)
    assert "no leaf" in cli("log", "--", "nowhere", code=1)

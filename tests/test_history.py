"""Revisions, refs, undo, ancestry and three-way plans: tables and random graphs."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vcjax
from vcjax.errors import ConflictError, MergeError, RefError, RevisionError
from vcjax.history import Commit, is_ancestor, merge_bases, walk
from vcjax.history.refnames import check_name


@pytest.fixture
def story(repo):
    """base ─ two ─ merge on main, with a side branch; commits by message."""
    commits = {}

    def commit(message, tree, **options):
        commits[message] = repo.commit(tree, message, **options)

    commit("base", {"a": 0, "b": 0}, metadata={"step": 1}, metrics={"val_loss": 0.5, "accuracy": 1})
    repo.branch("side")
    commit("two", {"a": 1, "b": 0}, metadata={"step": 2}, metrics={"val_loss": 0.2, "accuracy": 2})
    commit("left", {"a": 0, "b": 1}, branch="side", metrics={"val_loss": 0.9, "accuracy": 9})
    commits["merge"] = repo.merge("main", "side", message="merge")
    repo.tag("v1.0", at="main~1")
    return repo, commits


@pytest.mark.parametrize(
    ("revision", "message"),
    [
        ("HEAD", "merge"),
        ("@", "merge"),
        ("latest", "merge"),
        ("main", "merge"),
        ("heads/main", "merge"),
        ("refs/heads/main", "merge"),
        ("side", "left"),
        ("v1.0", "two"),
        ("tags/v1.0", "two"),
        ("HEAD~", "two"),
        ("HEAD~1", "two"),
        ("HEAD~0", "merge"),
        ("HEAD^0", "merge"),
        ("HEAD~2", "base"),
        ("HEAD^", "two"),
        ("HEAD^1", "two"),
        ("HEAD^2", "left"),
        ("HEAD^2~1", "base"),
        ("HEAD^2^", "base"),
        ("main^^", "base"),
        ("main@{0}", "merge"),
        ("main@{1}", "two"),
        ("main@{1}~1", "base"),
        ("@{1}", "two"),
        ("HEAD@{1}", "two"),
        ("step:2", "two"),
        ("step:1", "base"),
        ("best:val_loss", "two"),
        ("best:val_loss:max", "left"),
        ("best:accuracy", "left"),
        ("best:accuracy:min", "base"),
    ],
)
def test_revisions(story, revision, message):
    repo, _ = story
    assert repo.resolve(revision).message == message


def test_digests_and_prefixes(story):
    repo, commits = story
    for commit in commits.values():
        assert repo.resolve(commit.digest) == commit
        assert repo.resolve(commit.digest[:12]) == commit
        assert repo.resolve(commit) is commit


@pytest.mark.parametrize(
    ("revision", "text"),
    [
        ("mian", "did you mean main"),
        ("sidr~1", "did you mean side"),
        ("HEAD~9", "parent"),
        ("HEAD^3", "2 parent"),
        ("main@{7}", "3 state"),
        ("nobody@{1}", "no ref"),
        ("step:77", "nearest are 2, 1"),
        ("step:x", "step:1200"),
        ("best:f1", "accuracy, val_loss"),
        ("0123456789", "no commit is called"),
        ("abc", "no commit is called"),
        ("", "no commit is called"),
        ("../../etc/passwd", "no commit is called"),
        ("refs/heads/../../HEAD", "no commit is called"),
        ("main/x", "no commit is called"),
        ("a\0b", "no commit is called"),
        ("\udcff", "no commit is called"),
        ("^", "no commit is called"),
        ("HEAD" + "^" * 5000, "parent"),
        ("HEAD~99999999999999999999", "no commit is called"),
    ],
)
def test_bad_revisions(story, revision, text):
    repo, _ = story
    with pytest.raises(RevisionError) as caught:
        repo.resolve(revision)
    assert text in str(caught.value)
    assert caught.value.hint


def test_ambiguous_prefix(repo):
    seen = {}
    for i in range(3000):
        data = Commit("00" * 32, "00" * 32, (), "a", datetime.now(UTC), str(i)).encode()
        if data[0][:4] in seen:
            break
        seen[data[0][:4]] = data
    for name, content in (data, seen[data[0][:4]]):
        repo.store.write(f"commits/{name[:2]}/{name}.msgpack", content)
    with pytest.raises(RevisionError, match="beginning of 2 commits") as caught:
        repo.resolve(data[0][:4])
    assert "more digits" in caught.value.hint
    assert repo.resolve(data[0]).digest == data[0]


def test_a_branch_and_a_tag_of_one_name(story):
    repo, _ = story
    repo.tag("side", at="main")
    with pytest.raises(RevisionError, match="could be"):
        repo.resolve("side")
    assert repo.resolve("heads/side").message == "left"
    assert repo.resolve("tags/side").message == "merge"


def test_detached_head(story):
    repo, commits = story
    repo.switch("v1.0", detach=True)
    assert repo.head.branch is None
    assert repo.resolve("HEAD") == commits["two"]
    commit = repo.commit({"a": 9, "b": 9}, "loose")
    assert commit.parents == (commits["two"].digest,)
    assert repo.resolve("HEAD").digest == commit.digest
    assert repo.resolve("main") == commits["merge"]
    for refused in (repo.undo, lambda: repo.switch("v1.0")):
        with pytest.raises(RefError):
            refused()
    assert repo.resolve("HEAD@{1}") == commits["two"]
    with pytest.raises(RevisionError):
        repo.resolve("HEAD@{2}")
    repo.branch("kept")
    repo.switch("kept")
    assert repo.head.branch == "kept"


GOOD = ["main", "a/b/c", "v1.1", "naïve", "x_y-z", "a.b", "1", "feature/été", "n" * 200]
BAD = [
    *("", "HEAD", "@", "a b", "a~b", "a^b", "a:b", "a?b", "a*b", "a[b", "a\\b", "a@b", "a..b"),
    *("a//b", "/a", "a/", ".a", "a/.b", "-a", "a/-b", "a.", "a.lock", "a.lock/b", "a\0b", "a\x7f"),
    *("a\nb", "../a", "n" * 201, "é" * 101, "\udcff"),
]


@pytest.mark.parametrize("name", GOOD)
def test_good_names(story, name):
    repo, commits = story
    repo.tag(name, at="side")
    assert repo.tags[name] == commits["left"].digest
    repo.delete_tag(name)


@pytest.mark.parametrize("name", BAD)
def test_bad_names(story, name):
    repo, _ = story
    for action in (repo.branch, repo.tag, check_name):
        with pytest.raises(RefError, match="not a valid name"):
            action(name)


def test_no_ref_is_a_folder_of_another(story):
    repo, _ = story
    repo.branch("x/y")
    for name in ("x", "x/y/z", "main/x"):
        with pytest.raises(RefError, match="beside"):
            repo.branch(name)
    repo.delete_branch("x/y")
    repo.branch("x")
    assert "x" in repo.branches


def test_refs_are_not_moved_by_mistake(story):
    repo, commits = story
    with pytest.raises(RefError, match="exists already"):
        repo.branch("side")
    repo.branch("side", force=True)
    assert repo.branches["side"] == commits["merge"].digest
    with pytest.raises(RefError, match="current branch"):
        repo.delete_branch("main")
    with pytest.raises(RefError, match="did you mean side"):
        repo.delete_branch("sid")
    with pytest.raises(RefError, match="did you mean side"):
        repo.switch("sidee")


def test_undo_and_undo_again(repo):
    digests = [repo.commit({"w": i}, str(i)).digest for i in range(4)]
    for expected in (2, 1):
        assert repo.undo().commit == digests[expected]
    again = repo.commit({"w": 9}, "9")
    assert again.parents == (digests[1],)
    assert repo.resolve("main@{1}").digest == digests[1]
    assert repo.undo().commit == digests[1]
    assert repo.undo().commit == digests[0]
    assert repo.undo() is None
    assert repo.branches == {}
    with pytest.raises(RefError):
        repo.undo()
    repo.commit({"w": 5}, "a new beginning")
    assert repo.undo() is None
    assert repo.fsck().ok


def test_a_lost_log_entry_undoes_nothing(repo):
    for i in range(3):
        repo.commit({"w": i}, str(i))
    repo.store.delete(["log/refs/heads/main@000000000002.json"])
    with pytest.raises(RefError, match="lacks its state 2"):
        repo.undo()
    assert repo.restore() == {"w": 2}
    assert [p.message for p in repo.fsck().problems] == ["its state 2 is missing"]


def test_former_states_are_kept_by_when_they_were_replaced(repo):
    """A state that was set long ago and replaced today can still be undone after `gc`."""
    repo.commit({"w": 1}, "old")
    state = repo.refs.get("refs/heads/main")
    old = vcjax.Ref(state.name, state.commit, 1, state.time - 1e8, "commit: old", None, "00")
    repo.store.write(state.name, old.encode())
    repo.commit({"w": 2}, "new")
    repo.branch("elsewhere")
    repo.refs.undo("refs/heads/elsewhere")
    repo.gc(force=True)
    assert repo.undo().commit == old.commit
    assert repo.restore() == {"w": 1}


def graph(edges):
    """Commits by name from {name: parents}; times run backwards."""
    commits = {}
    for i, (name, parents) in enumerate(edges.items()):
        time = datetime(2026, 1, 1, tzinfo=UTC) - timedelta(hours=i)
        generation = 1 + max((commits[p].generation for p in parents), default=0)
        commits[name] = Commit(
            "", "", tuple(parents), "", time, name, generation=generation, digest=name
        )
    return commits


def naive_ancestors(commits, name):
    found = {name}
    for parent in commits[name].parents:
        found |= naive_ancestors(commits, parent)
    return found


@st.composite
def graphs(draw):
    edges = {}
    for i in range(draw(st.integers(1, 14))):
        names = list(edges)
        parents = draw(st.lists(st.sampled_from(names), max_size=3, unique=True)) if names else []
        edges[f"{i:02}"] = parents
    return graph(edges)


@settings(max_examples=300, deadline=None)
@given(graphs(), st.data())
def test_merge_bases_are_what_they_are_defined_to_be(commits, data):
    one, other = (data.draw(st.sampled_from(sorted(commits))) for _ in range(2))
    reach = {name: naive_ancestors(commits, name) for name in commits}
    common = reach[one] & reach[other]
    best = {c for c in common if not any(c in reach[d] for d in common - {c})}
    assert sorted(merge_bases(one, other, commits.__getitem__)) == sorted(best)
    assert is_ancestor(one, other, commits.__getitem__) == (one in reach[other])


@settings(max_examples=200, deadline=None)
@given(graphs())
def test_walk_shows_children_before_parents(commits):
    order = [commit.digest for commit in walk(commits, commits.__getitem__)]
    assert sorted(order) == sorted(commits)
    for name in order:
        for parent in commits[name].parents:
            assert order.index(name) < order.index(parent)


def test_log_of_a_clock_that_goes_backwards(repo, monkeypatch):
    import vcjax.repo.committing as committing

    times = iter(datetime(2026, 1, 1, tzinfo=UTC) - timedelta(days=i) for i in range(9))

    class Clock:
        @staticmethod
        def now(_):
            return next(times)

    monkeypatch.setattr(committing, "datetime", Clock)
    for i in range(4):
        repo.commit({"w": i}, str(i))
    assert [commit.message for commit in repo.log()] == ["3", "2", "1", "0"]
    assert [commit.message for commit in repo.log(limit=2)] == ["3", "2"]
    assert repo.fsck().ok


# -- three-way merges ----------------------------------------------------------

F = np.float32
ZERO, ONE, TWO = F([0, 0]), F([1, 1]), F([2, 2])


class _Absent:
    def __repr__(self):
        return "absent"


GONE = _Absent()


@pytest.mark.parametrize(
    ("base", "ours", "theirs", "verdict", "merged"),
    [
        (ZERO, ZERO, ZERO, "unchanged", ZERO),
        (ZERO, ONE, ZERO, "ours", ONE),
        (ZERO, ZERO, ONE, "theirs", ONE),
        (ZERO, ONE, ONE, "same", ONE),
        (ZERO, ONE, TWO, "conflict", None),
        (ZERO, GONE, ZERO, "ours", GONE),
        (ZERO, ZERO, GONE, "theirs", GONE),
        (ZERO, GONE, GONE, "same", GONE),
        (ZERO, GONE, ONE, "structure", None),
        (ZERO, ONE, GONE, "structure", None),
        (GONE, ONE, GONE, "ours", ONE),
        (GONE, GONE, ONE, "theirs", ONE),
        (GONE, ONE, ONE, "same", ONE),
        (GONE, ONE, TWO, "conflict", None),
        (ZERO, ONE, F([1, 1, 1]), "structure", None),
        (ZERO, ONE, np.float64([2, 2]), "structure", None),
        (ZERO, np.float64([2, 2]), ZERO, "ours", np.float64([2, 2])),
        (ZERO, ONE, 1, "structure", None),
        (1, 2, 3, "conflict", None),
        ([1, 2], [1, 2, 3], [1, 2], "ours", [1, 2, 3]),
        ([1, 2], [1, 2, 3], [5, 2], "structure", None),
        ([1, 2], (1, 2), [5, 2], "structure", None),
        ({"x": 1}, [1], {"x": 2}, "structure", None),
        ([1, 2], [5, 2], [1, 6], None, [5, 6]),
        ({"x": 1, "y": 1}, {"x": 2, "y": 1}, {"x": 1, "z": 3}, None, {"x": 2, "z": 3}),
    ],
    ids=str,
)
def test_verdicts(repo, base, ours, theirs, verdict, merged):
    def tree(value, **marks):
        return {"mine": 0, "yours": 0, **marks} | ({} if value is GONE else {"w": value})

    # Each side changes a leaf of its own, so that neither tree is taken as a whole.
    repo.commit(tree(base), "base")
    repo.branch("theirs")
    repo.commit(tree(theirs, yours=1), "theirs", branch="theirs")
    repo.commit(tree(ours, mine=1), "ours")
    plan = repo.plan_merge("main", "theirs")
    verdicts = {decision.path: decision.verdict for decision in plan.decisions}
    assert (verdicts.pop("mine"), verdicts.pop("yours")) == ("ours", "theirs")
    if verdict is not None:
        assert set(verdicts.values()) <= {verdict}
        assert verdicts or ours is theirs is GONE
    if merged is None:
        before = repo.branches
        with pytest.raises(ConflictError) as caught:
            repo.merge("main", "theirs")
        assert [path.partition(":")[0] for path in caught.value.paths] == ["w"]
        assert caught.value.hint
        assert repo.branches == before
        repo.merge("main", "theirs", resolve={"w": "theirs"})
        merged = theirs
    else:
        repo.merge("main", "theirs")
    result = repo.restore("main")
    assert ("w" in result) == (merged is not GONE)
    if merged is not GONE:
        np.testing.assert_equal(result["w"], merged)
    assert repo.fsck().ok


def test_merge_bookkeeping(repo):
    base = repo.commit({"w": 0}, "base")
    repo.branch("side")
    theirs = repo.commit({"w": 1}, "theirs", branch="side")
    assert repo.merge("main", "side") == theirs  # fast-forward
    assert repo.merge("main", "side") == theirs  # nothing to do
    assert repo.merge("side", base.digest[:10]) == theirs
    with pytest.raises(RefError, match="no branch"):
        repo.merge(base.digest, "side")
    repo.commit({"w": 2}, "", branch="side")
    repo.commit({"w": 3}, "")
    with pytest.raises(MergeError, match="no side"):
        repo.merge("main", "side", resolve="mine")
    merged = repo.merge("main", "side", resolve="base", metrics={"loss": 1})
    assert repo.restore() == {"w": 1}
    assert merged.provenance["bases"] == [theirs.digest]
    assert merged.provenance["decisions"] == {"w": "side"}
    assert merged.metrics == {"loss": 1.0}


def test_unrelated_histories(repo):
    repo.commit({"a": 1, "w": 1}, "one")
    root = repo.history.write_commit(
        Commit(
            *(repo.resolve("HEAD").manifest, repo.resolve("HEAD").tree),
            *((), "x", datetime.now(UTC), "unrelated"),
            leaves=2,
        )
    )
    repo.branch("alone", at=root)
    repo.switch("alone")
    repo.restore()
    repo.commit({"b": 2, "w": 2}, "its own")
    with pytest.raises(ConflictError, match="w"):
        repo.merge("main", "alone")
    repo.merge("main", "alone", resolve="base")
    assert repo.restore("main") == {"a": 1, "b": 2}  # the base has no w


def test_no_base_for_a_whole_tree(repo):
    repo.commit({"a": 1}, "one")
    first = repo.resolve("HEAD")
    root = Commit(first.manifest, first.tree, (), "x", datetime.now(UTC), "unrelated", leaves=1)
    repo.branch("alone", at=repo.history.write_commit(root))
    repo.commit([1, 2], "a list", branch="alone")
    repo.commit({"a": 2}, "a dict")
    with pytest.raises(ConflictError):
        repo.merge("main", "alone")
    with pytest.raises(MergeError, match="no base") as caught:
        repo.merge("main", "alone", resolve="base")
    assert caught.value.hint
    assert repo.restore("main") == {"a": 2}


def test_criss_cross(repo):
    """Two merge bases that agree on one leaf and disagree on another."""
    repo.commit({"a": 0, "b": 0}, "base")
    repo.branch("side")
    repo.commit({"a": 1, "b": 0}, "left")
    repo.commit({"a": 2, "b": 0}, "right", branch="side")
    left, right = repo.resolve("main"), repo.resolve("side")
    repo.merge("main", right, resolve="ours")
    repo.merge("side", left, resolve="ours")
    assert sorted(merge_bases(*repo.branches.values(), repo.history.commit)) == sorted(
        [left.digest, right.digest]
    )
    repo.restore("main")
    repo.commit({"a": 1, "b": 5}, "b on main")
    with pytest.raises(ConflictError) as caught:
        repo.merge("main", "side")
    assert [path.partition(":")[0] for path in caught.value.paths] == ["a"]
    with pytest.raises(MergeError, match="no base"):
        repo.merge("main", "side", resolve="base")
    repo.merge("main", "side", resolve="theirs")
    assert repo.restore("main") == {"a": 2, "b": 5}
    assert repo.fsck().ok


@pytest.mark.parametrize("keys", [("a", "b", "c"), (3, 1, 2), (2.5, 1, 3)])
def test_merged_trees_have_the_digest_of_equal_trees(repo, keys):
    one, two, three = keys
    repo.commit({one: 0}, "base")
    repo.branch("side")
    repo.commit({one: 0, two: 1}, "ours")
    repo.commit({one: 0, three: 2}, "theirs", branch="side")
    merged = repo.merge("main", "side")
    again = repo.commit({one: 0, two: 1, three: 2}, "again", branch="again")
    assert merged.tree == again.tree


@pytest.mark.parametrize("name", ["average", "ties", "dare_ties", "model_stock"])
def test_64_bit_leaves_are_merged_in_64_bits(name):
    repo = vcjax.Repository.init(f"memory://wide-{name}")
    base = np.linspace(0, 1, 300)
    repo.commit({"w": base})
    repo.branch("a")
    repo.branch("b")
    repo.commit({"w": base + 1e-12}, branch="a")
    repo.commit({"w": base + 3e-12}, branch="b")
    method = vcjax.merging.from_config(name)
    merged = repo.restore(repo.merge("a", "b", method=method, key=0 if method.random else None))
    change = merged["w"] - base
    assert merged["w"].dtype == np.float64
    assert 0 < np.abs(change).max() < 1e-11  # float32 would round by 1e-8

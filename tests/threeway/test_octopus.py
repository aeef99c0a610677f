"""Merging more than two lines of development at once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcjax import Repository, merging, threeway
from vcjax.errors import ConflictError, MergeError
from vcjax.tree import LeafSpec, Node, leaf_dict

W = np.array([1, 2, 3, 4], np.float32)


def spread(repo, base, **sides):
    """Branches of these names, each with a tree of its own, that come from one commit."""
    repo.commit(base, "base")
    for name, tree in sides.items():
        repo.branch(name, at="main")
        repo.commit(tree, name, branch=name)
        repo.refresh(name)
    repo.refresh()


def decisions(commit):
    return commit.provenance["decisions"], commit.provenance["sides"]


def test_changes_of_several_sides_meet(repo):
    base = {"a": W, "b": W, "c": W, "d": W, "e": W}
    spread(
        repo,
        base,
        one={**base, "a": W + 1},
        two={**base, "b": W + 2, "d": W * 2},
        three={**base, "c": W + 3, "d": W * 2},
    )
    commit = repo.merge("main", "one", "two", "three")
    assert repo.restore("main").keys() == base.keys()
    for name, value in {"a": W + 1, "b": W + 2, "c": W + 3, "d": W * 2, "e": W}.items():
        np.testing.assert_array_equal(repo.restore("main")[name], value)
    tips = repo.branches
    assert commit.parents[1:] == (tips["one"], tips["two"], tips["three"])
    assert commit.provenance["inputs"] == list(commit.parents)
    assert commit.message == "Merge one, two and three into main"
    assert decisions(commit) == (
        {"a": "theirs", "b": "theirs", "c": "theirs", "d": "same"},
        {"a": [1], "b": [2], "c": [3], "d": [2, 3]},
    )
    assert repo.fsck().ok


def test_a_method_merges_the_sides_that_changed_a_leaf(repo):
    base = {"w": W, "v": W, "keep": W}
    spread(
        repo,
        base,
        one={**base, "w": W + 1, "v": W + 1},
        two={**base, "w": W + 2},
        three={**base, "v": W + 4, "keep": W - 1},
    )
    commit = repo.merge(
        "one", "two", "three", method=merging.task_arithmetic(), weights=[1, 10, 100]
    )
    merged = repo.restore("one")
    np.testing.assert_array_equal(merged["w"], W + 1 + 20)
    np.testing.assert_array_equal(merged["v"], W + 1 + 400)
    np.testing.assert_array_equal(merged["keep"], W - 1)
    assert decisions(commit) == (
        {"keep": "theirs", "v": "method", "w": "method"},
        {"keep": [2], "v": [0, 2], "w": [0, 1]},
    )
    assert repo.merges.rerun(commit).is_same


def test_sides_of_conflicts_go_by_their_names(repo):
    spread(repo, {"w": W, "x": 0}, one={"w": W + 1, "x": 1}, two={"w": W + 2, "x": 2})
    repo.commit({"w": W + 3, "x": 0}, "main", branch="main")
    with pytest.raises(ConflictError) as caught:
        repo.merge("main", "one", "two")
    assert "main, one and two changed 2 leaves differently" in caught.value.message
    assert [path.partition(":")[0] for path in caught.value.paths] == ["w", "x"]
    assert "in ours" in caught.value.paths[0]
    assert "in two" in caught.value.paths[0]
    assert "ours" not in caught.value.paths[1]  # which has not changed it
    with pytest.raises(MergeError, match="'theirs' is no side of a merge") as caught:
        repo.merge("main", "one", "two", resolve="theirs")
    assert "'one', 'two'" in str(caught.value.hint)
    commit = repo.merge("main", "one", "two", resolve={"w": "two", "x": "base"})
    np.testing.assert_array_equal(repo.restore("main")["w"], W + 2)
    assert repo.restore("main")["x"] == 0
    assert commit.provenance["sides"] == {"w": [2], "x": []}


def test_the_first_side_that_changed_it_has_its_counter(repo):
    spread(repo, {"n": 0, "w": W}, one={"n": 5, "w": W + 1}, two={"n": 7, "w": W + 3})
    repo.commit({"n": 0, "w": W + 5}, "main", branch="main")
    commit = repo.merge("main", "one", "two", method="average")
    assert repo.restore("main")["n"] == 5
    assert decisions(commit) == ({"n": "first", "w": "method"}, {"n": [1], "w": [0, 1, 2]})
    np.testing.assert_array_equal(repo.restore("main")["w"], W + 3)


def test_additions_and_deletions(repo):
    base = {"p": {"a": W, "b": W, "c": W}, "gone": W}
    spread(
        repo,
        base,
        one={"p": {"a": W, "b": W, "c": W, "new": W}, "gone": W},
        two={"p": {"b": W, "c": W, "new": W}},
        three={"p": {"a": W, "b": W + 1, "z": W, "c": W}, "gone": W},
    )
    repo.merge("one", "two", "three")
    merged = repo.restore("one")
    assert merged.keys() == {"p"}
    assert list(merged["p"]) == ["b", "c", "new", "z"]
    np.testing.assert_array_equal(merged["p"]["b"], W + 1)


STRUCTURES = {
    "deleted and changed": ({}, {"w": W + 1}, {"w": W + 1}),
    "two shapes": ({"w": W[:2]}, {"w": W + 1}, {"w": W}),
    "two containers": ({"w": [W]}, {"w": (W,)}, {"w": W}),
    "added in two shapes": ({"new": W, "w": W}, {"w": W}, {"new": W[:1], "w": W}),
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_conflicts_of_structure_need_a_side(repo, name):
    one, two, three = ({**tree, "mark": at} for at, tree in enumerate(STRUCTURES[name]))
    spread(repo, {"w": W, "mark": 9}, one=one, two=two, three=three)
    before = repo.branches
    with pytest.raises(ConflictError) as caught:
        repo.merge("one", "two", "three", method="average")
    assert "cannot be settled by a merge method" in caught.value.message
    assert repo.branches == before
    repo.merge("one", "two", "three", method="average", resolve={"w": "ours", "new": "three"})
    merged = repo.restore("one")
    assert ("w" in merged) == ("w" in one)
    assert merged.get("new", W[:1]).shape == (1,)


def test_branches_that_left_a_line_at_different_commits(repo):
    """Compared with the commit that all come from, old states would look like changes."""
    repo.commit({"w": W, "v": W, "x": 0}, "zero")
    repo.branch("early")
    repo.commit({"w": W + 1, "v": W + 1, "x": 0}, "one")
    repo.branch("late")
    repo.commit({"w": W, "v": W + 2, "x": 0}, "w is back, v goes on")
    for at, name in enumerate(["early", "late"], start=1):
        tree = repo.restore(name)
        repo.commit({**tree, "x": at}, name, branch=name)
        repo.refresh(name)
    commit = repo.merge("main", "early", "late", resolve={"x": "late"})
    merged = repo.restore("main")
    np.testing.assert_array_equal(merged["w"], W)
    np.testing.assert_array_equal(merged["v"], W + 2)
    assert merged["x"] == 2
    assert commit.provenance["decisions"] == {"v": "ours", "w": "ours", "x": "side"}
    assert repo.merges.rerun().is_same


def test_criss_cross_histories(repo):
    """Where two sides come from two commits that disagree, nothing is taken for unchanged."""
    spread(repo, {"w": 0, "v": 0}, one={"w": 1, "v": 0}, two={"w": 2, "v": 0})
    one, two = repo.resolve("one"), repo.resolve("two")
    repo.merge("one", two, resolve={"w": "ours"})
    repo.merge("two", one, resolve={"w": "ours"})
    repo.branch("three", "main")
    repo.commit({"w": 0, "v": 3}, "three", branch="three")
    with pytest.raises(ConflictError) as caught:
        repo.merge("one", "two", "three")
    assert [path.partition(":")[0] for path in caught.value.paths] == ["w"]
    repo.merge("one", "two", "three", resolve={"w": "two"})
    assert repo.restore("one") == {"v": 3, "w": 2}
    assert repo.merges.rerun("one").is_same


def test_sides_that_bring_nothing_are_left_out(repo):
    spread(repo, {"w": 0, "v": 0}, one={"w": 1, "v": 0}, two={"w": 0, "v": 2})
    start = repo.resolve("main")
    assert repo.merge("main", "one", start) == repo.resolve("one")  # fast-forward
    assert repo.merge("main", "one", start, "one") == repo.resolve("one")  # nothing to do
    old = repo.resolve("two")
    repo.commit({"w": 0, "v": 3}, "further", branch="two")
    commit = repo.merge("main", start, old, "two", method="linear", weights=[1, 2, 3, 4])
    assert commit.parents == (repo.branches["one"], repo.branches["two"])
    assert commit.provenance["weights"] == [1, 4]
    assert repo.restore("main") == {"v": 3, "w": 1}


def test_methods_of_two_models_say_where_they_meet_three(repo):
    spread(repo, {"w": W}, one={"w": W + 1}, two={"w": W + 2}, three={"w": W * 2})
    with pytest.raises(MergeError, match="slerp takes exactly 2 models, and 3 sides") as caught:
        repo.merge("one", "two", "three", method="slerp")
    assert "two at a time" in str(caught.value.hint)


def test_methods_of_whole_models_see_all_sides(repo):
    rng = np.random.default_rng(0)
    base = {"w": rng.normal(size=32), "v": rng.normal(size=32)}
    one, two, three = (dict(base) for _ in range(3))
    one["w"], two["w"] = base["w"] + 1, base["w"] + rng.normal(size=32)
    one["v"], three["v"] = base["v"] - 1, base["v"] + rng.normal(size=32)
    spread(repo, base, one=one, two=two, three=three)
    commit = repo.merge("one", "two", "three", method=merging.ties_whole(density=0.4))
    expected = merging.merge([one, two, three], merging.ties_whole(density=0.4), base=base)
    for name, value in repo.restore("one").items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-12)
    assert commit.provenance["sides"] == {"v": [0, 1, 2], "w": [0, 1, 2]}


def test_every_order_of_independent_changes_gives_one_tree(repo):
    base = {f"l{i}": np.array([i], np.float32) for i in range(4)}
    sides = {f"b{i}": {**base, f"l{i}": np.array([10 + i], np.float32)} for i in range(4)}
    spread(repo, base, **sides)
    trees = set()
    for order in (["b0", "b1", "b2", "b3"], ["b3", "b1", "b0", "b2"]):
        repo.branch("out", order[0], force=True)
        trees.add(repo.merge("out", *order[1:]).tree)
    repo.branch("out", "b0", force=True)
    for name in ("b1", "b2", "b3"):
        last = repo.merge("out", name)
    assert trees == {last.tree}


def test_the_plan_says_who_changed_what(repo):
    spread(repo, {"w": 0, "v": 0}, one={"w": 1, "v": 0}, two={"w": 0, "v": 2})
    plan = repo.plan_merge("main", "one", "two")
    assert plan.to_dict()["decisions"] == [
        {"path": "v", "verdict": "theirs", "changed": [2]},
        {"path": "w", "verdict": "theirs", "changed": [1]},
    ]


def test_unrelated_histories(tmp_path):
    repo = Repository.init(tmp_path / "r")
    repo.commit({"w": W}, "main")
    for name in ("one", "two"):
        other = Repository.init(f"memory://unrelated-{name}-{tmp_path.name}")
        other.commit({"w": W * 2 if name == "one" else W * 3, name: 1}, name)
        root = other.resolve("HEAD")
        manifest = repo.history.write_manifest(other.manifest())
        assert manifest.digest == root.manifest
        repo.branch(name, repo.history.write_commit(root))
    with pytest.raises(ConflictError, match="main, one and two changed 1 leaf"):
        repo.merge("main", "one", "two")
    with pytest.raises(MergeError, match="needs a base, and there is none for w"):
        repo.merge("main", "one", "two", method="task_arithmetic")
    commit = repo.merge("main", "one", "two", method="average")
    np.testing.assert_array_equal(repo.restore()["w"], W * 2)
    assert commit.provenance is not None
    assert commit.provenance["bases"] == []


class Leaf:
    """A leaf of which only spec and digest matter."""

    def __init__(self, value):
        self.spec = LeafSpec("float32", (value,), "numpy")
        self.digest = str(value)


def node_of(flat):
    """A tree of two folders and a leaf beside them, from {path: number or None}."""
    found = {}
    for path, value in flat.items():
        folder, _, name = path.rpartition("/")
        inner = found.setdefault(folder, {})
        if value is not None:
            inner[name] = Leaf(value)
    top = found.pop("", {})
    top |= {
        name: Node("dict", tuple(inner), tuple(inner.values())) for name, inner in found.items()
    }
    names = tuple(sorted(top))
    return Node("dict", names, tuple(top[name] for name in names))


def digest(node):
    if isinstance(node, Node):
        return repr(
            [(key, digest(child)) for key, child in zip(node.keys, node.children, strict=True)]
        )
    return node.digest


PATHS = ("p/a", "p/b", "q/a", "q/b", "r")
FLAT = st.fixed_dictionaries(dict.fromkeys(PATHS, st.sampled_from([None, 1, 2, 3])))


@given(FLAT, st.lists(FLAT, min_size=2, max_size=5))
def test_plans_of_trees_are_those_of_their_leaves(base, sides):
    roots = [node_of(side) for side in sides]
    plan = threeway.plan_octopus(node_of(base), roots, {}, digest)
    merged = leaf_dict(plan.root)
    for path in PATHS:
        changed = {side[path] for side in sides if side[path] != base[path]}
        if len(changed) > 1:
            decision = plan.conflicts[path]
            who = [at for at, side in enumerate(sides) if side[path] != base[path]]
            assert list(decision.changed) == who
            continue
        expected = changed.pop() if changed else base[path]
        found = merged.get(path)
        assert (None if found is None else found.digest) == (expected and str(expected))
        assert path not in plan.conflicts
    assert set(plan.conflicts) <= set(PATHS)

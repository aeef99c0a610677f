"""Which leaf is which: names, digests, then alignment by content."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vcjax
import vcjax.diffing
import vcjax.tree
from vcjax.diffing.alignment import align

from .figures import figures


def layer(seed, width=32):
    rng = np.random.default_rng(seed)
    return {
        "kernel": rng.standard_normal((width, width)).astype(np.float32),
        "norm": {"scale": (1 + 0.05 * rng.standard_normal(2 * width)).astype(np.float32)},
        "bias": np.zeros(2 * width, np.float32),
    }


def stack(*layers):
    return {
        "embed": np.ones((70, 3), np.float32),
        **{f"layers_{i}": x for i, x in enumerate(layers)},
    }


def tuned(tree, seed=99, step=0.01):
    """The tree after some training: every number moved a little, zeros too."""
    rng = np.random.default_rng(seed)

    def move(x):
        if isinstance(x, dict):
            return {key: move(value) for key, value in x.items()}
        return (x + step * rng.standard_normal(x.shape)).astype(x.dtype)

    return {key: move(value) for key, value in tree.items()}


def origins(diff):
    """{module: module that it was} of all kernels of layers on both sides."""
    return {
        c.path.split("/")[0]: (c.old_path or c.path).split("/")[0]
        for c in diff.changes
        if c.path.endswith("kernel") and c.status not in ("added", "removed")
    }


def of_status(diff, *statuses):
    return {c.path.split("/")[0] for c in diff.with_status(*statuses)}


LAYERS = [layer(i) for i in range(6)]
OLD = stack(*LAYERS)

CHANGES = {
    "inserted": ([0, 1, 2, None, 3, 4, 5], "added"),
    "at the start": ([None, 0, 1, 2, 3, 4, 5], "added"),
    "at the end": ([0, 1, 2, 3, 4, 5, None], "added"),
    "two": ([0, None, 1, 2, 3, None, 4, 5], "added"),
    "deleted": ([0, 1, 3, 4, 5], "removed"),
    "replaced and shifted": ([0, 2, 3, 4, 5], "removed"),
    "swapped": ([0, 4, 2, 3, 1, 5], None),
    "reversed": ([5, 4, 3, 2, 1, 0], None),
    "moved to the end": ([1, 2, 3, 4, 5, 0], None),
}


@pytest.mark.parametrize("trained", [False, True], ids=["as they were", "trained"])
@pytest.mark.parametrize("name", CHANGES)
def test_layers_are_found_again(name, trained):
    order, status = CHANGES[name]
    new = stack(*(layer(50 + i) if old is None else LAYERS[old] for i, old in enumerate(order)))
    new = tuned(new) if trained else new
    diff = vcjax.diff(OLD, new)
    expected = {f"layers_{i}": f"layers_{old}" for i, old in enumerate(order) if old is not None}
    assert origins(diff) == expected
    if status == "added":
        fresh = {f"layers_{i}" for i, old in enumerate(order) if old is None}
        assert of_status(diff, "added") == fresh
        assert not diff.with_status("removed")
    if status == "removed":
        assert len(of_status(diff, "removed")) == 1
        assert not diff.with_status("added")
    for change in diff.with_status("moved"):
        assert (change.stats is not None) == trained == change.content_changed
    back = vcjax.diff(new, OLD)
    assert origins(back) == {old: new for new, old in expected.items()}


def test_names_win_where_nothing_shifted():
    """All layers trained, or one made anew: numbers mean what they did."""
    diff = vcjax.diff(OLD, tuned(OLD))
    assert {c.status for c in diff.changes} == {"changed"}
    diff = vcjax.diff(OLD, stack(*LAYERS[:2], layer(77), *LAYERS[3:]))
    assert of_status(diff, "changed") == {"layers_2"}
    assert not diff.with_status("moved", "added", "removed")
    diff = vcjax.diff(OLD, stack(*(layer(100 + i) for i in range(6))))
    assert not diff.with_status("moved", "added", "removed")


def test_an_adapter_is_the_only_addition():
    adapter = {"down": np.ones((32, 4), np.float32), "up": np.zeros((4, 32), np.float32)}
    new = {**OLD, "layers_2": {**OLD["layers_2"], "adapter": adapter}}
    diff = vcjax.diff(OLD, new)
    paths = ["layers_2/adapter/down", "layers_2/adapter/up"]
    assert [c.path for c in diff.changes if c.status != "unchanged"] == paths
    assert {c.status for c in diff.with_status("added")} == {"added"}


def test_numbers_in_lists_shift_too():
    diff = vcjax.diff({"blocks": LAYERS}, {"blocks": [LAYERS[0], layer(9), *LAYERS[1:]]})
    assert len(diff.with_status("added")) == 3
    moved = {c.path: c.old_path for c in diff.with_status("moved")}
    assert moved["blocks/2/kernel"] == "blocks/1/kernel"


def test_a_module_under_another_name_is_found_by_content():
    old = {"encoder": LAYERS[0], "head": LAYERS[1]}
    new = {"backbone": tuned({"x": LAYERS[0]})["x"], "head": LAYERS[1]}
    moved = {c.path: c for c in vcjax.diff(old, new).with_status("moved")}
    assert moved["backbone/kernel"].old_path == "encoder/kernel"
    assert figures(moved["backbone/kernel"])["relative_l2"] == pytest.approx(0.01, rel=0.1)
    # The module takes its leaves along, even those that tell nothing.
    assert moved["backbone/bias"].old_path == "encoder/bias"
    plain = vcjax.diff(old, new, stats=False)
    assert not plain.with_status("moved")


def test_a_leaf_that_moves_to_another_module_and_changes_is_found():
    old = {"a": {"x": LAYERS[0]["kernel"], "n": 1}, "b": {"y": LAYERS[1]["kernel"]}}
    new = {
        "a": {"n": 1},
        "b": {"y": LAYERS[1]["kernel"], "deep": {"x": LAYERS[0]["kernel"] + 0.01}},
    }
    diff = vcjax.diff(old, new)
    assert [(c.path, c.old_path) for c in diff.with_status("moved")] == [("b/deep/x", "a/x")]


def test_unrelated_leaves_are_not_taken_for_each_other():
    diff = vcjax.diff({"a": LAYERS[0]["kernel"]}, {"b": LAYERS[1]["kernel"]})
    assert diff.counts["added"] == diff.counts["removed"] == 1
    diff = vcjax.diff({"a": LAYERS[0]["norm"]}, {"b": LAYERS[1]["norm"]})
    assert diff.counts["added"] == diff.counts["removed"] == 1


def test_a_moved_subtree_moves_whole():
    diff = vcjax.diff({"a": {"enc": LAYERS[0], "n": 1}, "b": 2}, {"b": 2, "c": {"d": LAYERS[0]}})
    moved = {c.path: c.old_path for c in diff.with_status("moved")}
    assert moved["c/d/bias"] == "a/enc/bias"
    assert [c.path for c in diff.with_status("removed")] == ["a/n"]


PARTS = st.sampled_from([*LAYERS[:3], {}, 1, "text", np.zeros(70), np.ones(3), None])
SEQUENCES = st.dictionaries(st.sampled_from(["a", "l_0", "l_1", "l_2"]), PARTS | st.lists(PARTS))


@settings(max_examples=150, deadline=None)
@given(SEQUENCES, SEQUENCES)
def test_diffs_back_have_the_same_pairs_and_divergences(a, b):
    there, back = vcjax.diff(a, b), vcjax.diff(b, a)
    pairs = {(c.old_path or c.path, c.path) for c in there.changes if c.old and c.new}
    assert {(c.path, c.old_path or c.path) for c in back.changes if c.old and c.new} == pairs
    for diff in (there, back):
        assert 0 <= diff.structural_divergence <= diff.contextual_divergence <= 1
        assert (diff.contextual_divergence == 0) == diff.is_empty
    assert there.structural_divergence == pytest.approx(back.structural_divergence, abs=1e-12)
    assert there.contextual_divergence == pytest.approx(back.contextual_divergence, abs=1e-12)
    # Every leaf of either tree occurs exactly once.
    olds = [c.old_path or c.path for c in there.changes if c.old is not None]
    news = [c.path for c in there.changes if c.new is not None]
    assert len(set(olds)) == len(olds) == sum(c.old is not None for c in there.changes)
    assert len(set(news)) == len(news)
    itself = vcjax.diff(a, a)
    assert (itself.structural_divergence, itself.contextual_divergence) == (0, 0)
    assert itself.is_empty


def test_divergences_tell_structure_from_content():
    changed = {**OLD, "layers_3": {**OLD["layers_3"], "kernel": OLD["layers_3"]["kernel"] + 1}}
    diff = vcjax.diff(OLD, changed)
    assert diff.structural_divergence == 0
    assert diff.contextual_divergence == pytest.approx(1 / 19)
    assert [c.path for c in diff.with_status("changed")] == ["layers_3/kernel"]
    other = vcjax.diff({"a": LAYERS[0]["kernel"]}, {"b": 1})
    assert (other.structural_divergence, other.contextual_divergence) == (1, 1)
    grown = vcjax.diff({"a": np.ones(3)}, {"a": np.ones(4)})
    assert (grown.structural_divergence, grown.contextual_divergence) == (0.5, 1)


def test_equal_subtrees_are_not_looked_into():
    """No content is read of what the digests say is equal."""
    reads = []

    class Counted(vcjax.diffing.TreeContent):
        def read(self, path, first, last):
            reads.append(path)
            return super().read(path, first, last)

    new = {**OLD, "layers_3": {**OLD["layers_3"], "kernel": OLD["layers_3"]["kernel"] + 1}}
    sides = []
    for tree in (OLD, new):
        root = vcjax.tree.flatten(tree)
        leaves = vcjax.tree.leaf_dict(root)
        sides.append((vcjax.diffing.digested(root), Counted(leaves)))
    assert vcjax.diffing.examine(*sides).counts["changed"] == 1
    assert set(reads) == {"layers_3/kernel"}


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 6), st.integers(0, 6), st.data())
def test_alignment_is_a_matching_and_finds_the_heaviest_order(rows, columns, data):
    values = st.sampled_from([0.2, 0.5, 0.75, 1.0])
    score = {(i, j): data.draw(values) for i in range(rows) for j in range(columns)}
    found = align(rows, columns, score, set())
    assert len({i for i, _ in found}) == len({j for _, j in found}) == len(found)
    assert all(score[pair] >= 0.5 for pair in found)
    assert sum(score[pair] for pair in found) >= heaviest(rows, columns, score) - 1e-9


def heaviest(rows, columns, score):
    """The largest sum over pairs in order, by trying all."""
    if not rows or not columns:
        return 0.0
    skip = max(heaviest(rows - 1, columns, score), heaviest(rows, columns - 1, score))
    last = score[rows - 1, columns - 1]
    taken = heaviest(rows - 1, columns - 1, score) + last if last >= 0.5 else 0.0
    return max(skip, taken)

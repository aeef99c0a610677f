"""Three-way diffs and similarities of task vectors, against NumPy."""

import json

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vcjax
from vcjax import diffing
from vcjax.errors import TreeError
from vcjax.objects.commit_content import CommitContent
from vcjax.repo import diff as comparing

from .figures import figures, three_way

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


BASE = {"both": normal(30, 40), "ours": normal(9), "theirs": normal(9), "same": normal(9)}
BASE |= {"none": normal(9), "gone": normal(9), "n": 1}
OURS = {**BASE, "both": BASE["both"] + normal(30, 40), "ours": normal(9), "same": BASE["same"] + 1}
THEIRS = {**BASE, "both": BASE["both"] + normal(30, 40), "theirs": normal(9), "n": 2}
THEIRS |= {"same": BASE["same"] + 1, "fresh": normal(3)}
del OURS["gone"]
VERDICTS = {
    "both": "both",
    "ours": "ours",
    "theirs": "theirs",
    "same": "same",
    "none": "unchanged",
    "gone": "ours",
    "n": "theirs",
    "fresh": "theirs",
}


def of_sides(repo, ours, theirs, base):
    """The same three-way diff, of trees and of commits."""
    yield vcjax.diff(ours, theirs, base=base)
    one, two, start = (repo.manifest(repo.commit(tree)) for tree in (ours, theirs, base))
    yield comparing.compare(one, two, repo.objects, base=start)


def test_who_changed_what(repo):
    for diff in of_sides(repo, OURS, THEIRS, BASE):
        three = three_way(diff)
        assert {leaf.path: leaf.verdict for leaf in three.leaves} == VERDICTS
        assert three.counts == {"unchanged": 1, "ours": 2, "theirs": 3, "same": 1, "both": 1}
        fates = {leaf.path: (leaf.ours, leaf.theirs) for leaf in three.leaves}
        assert fates["gone"] == ("removed", "unchanged")
        assert fates["fresh"] == ("unchanged", "added")
        [both] = three.with_verdict("both")
        agree(both.stats, [OURS["both"], THEIRS["both"]], BASE["both"])
        assert three.stats == both.stats
        assert three.ours.counts["changed"] == three.theirs.counts["changed"] - 1 == 3
        document = diff.to_dict()["three_way"]
        assert json.loads(json.dumps(document)) == document
        assert len(document["leaves"]) == 7
    assert vcjax.diff(OURS, THEIRS).three_way is None
    plain = three_way(vcjax.diff(OURS, THEIRS, base=BASE, stats=False))
    assert {leaf.path: leaf.verdict for leaf in plain.leaves} == VERDICTS
    assert plain.stats is None


def agree(stats, models, base):
    """Checks figures of two task vectors against their definitions."""
    u, v = (m.astype(np.float64).ravel() - base.astype(np.float64).ravel() for m in models)
    both, either = (u != 0) & (v != 0), (u != 0) | (v != 0)
    norms = np.linalg.norm(u), np.linalg.norm(v)
    assert stats["cosine"] == pytest.approx(u @ v / norms[0] / norms[1], abs=1e-7)
    assert stats["norm_ours"] == pytest.approx(norms[0], rel=1e-6)
    assert stats["norm_theirs"] == pytest.approx(norms[1], rel=1e-6)
    assert stats["both_changed"] == both.sum()
    assert stats["ours_changed"] == (u != 0).sum()
    assert stats["overlap"] == pytest.approx(both.sum() / either.sum())
    agreeing = (np.sign(u) == np.sign(v))[both].sum()
    assert stats["sign_agreement"] == pytest.approx(agreeing / max(1, both.sum()))


def test_sides_that_did_the_same_and_the_opposite():
    step = normal(30, 40)
    base = {"w": np.zeros((30, 40), np.float32)}
    for factor, cosine, agreement in ((2, 1, 1), (-1, -1, 0)):
        stats = figures(three_way(vcjax.diff({"w": step}, {"w": factor * step}, base=base)))
        assert stats["cosine"] == pytest.approx(cosine, abs=1e-7)
        assert stats["sign_agreement"] == agreement
        assert stats["overlap"] == 1


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(["float32", "float64", "bfloat16", "float16"]),
    st.sampled_from([1e-30, 1e-6, 1.0, 1e25]),
    st.integers(0, 99),
)
def test_agreement_is_that_of_numpy(dtype, scale, seed):
    if dtype == "float16":
        scale = 1.0
    rng = np.random.default_rng(seed)
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    base, *models = ((scale * rng.standard_normal((7, 300))).astype(kind) for _ in range(3))
    for model in models:
        keep = rng.random(model.shape) < 0.5
        model[keep] = base[keep]
    trees = [{"w": x} for x in (*models, base)]
    stats = figures(three_way(vcjax.diff(trees[0], trees[1], base=trees[2])))
    agree(stats, models, base)


def test_similarity_of_many(repo):
    base = {"a": normal(50, 60), "b": normal(7), "steps": 3}
    models = [
        {"a": base["a"] + normal(50, 60), "b": base["b"] + (0 if i == 1 else 1), "steps": i}
        for i in range(4)
    ]
    models.append(base)
    vectors = np.array(
        [np.concatenate([(m[k] - base[k]).ravel() for k in "ab"]) for m in models], np.float64
    )
    norms = np.linalg.norm(vectors, axis=1)
    expected = vectors @ vectors.T / np.maximum(np.outer(norms, norms), 1e-30)
    names = ["one", "two", "three", "four", "base"]
    manifests = [repo.manifest(repo.commit(tree)) for tree in (*models, base)]
    for found in (
        diffing.similarity(models, base, names),
        comparing.similarity(manifests[:-1], manifests[-1], repo.objects, names),
    ):
        assert found.names == tuple(names)
        assert found.leaves == 2
        np.testing.assert_allclose(found.cosine, expected, atol=1e-6)
        np.testing.assert_allclose(found.norms, norms, rtol=1e-6)
        assert np.diag(found.cosine)[:4] == pytest.approx(np.ones(4))
        assert found.cosine[4] == (0,) * 5
        assert found.overlap[0][1] == pytest.approx(3000 / 3007)
        assert json.loads(json.dumps(found.to_dict())) == found.to_dict()


def test_leaves_that_cannot_be_compared_are_named():
    base = {"w": np.ones((2, 2)), "v": np.ones(3)}
    found = diffing.similarity([{"w": np.ones((3, 2)), "v": np.zeros(3)}], base)
    assert (found.skipped, found.leaves, found.norms) == (("w",), 1, (3**0.5,))
    with pytest.raises(TreeError, match="2 names"):
        diffing.similarity([base], base, ["a", "b"])


def test_only_chunks_that_a_model_changed_are_read(repo, monkeypatch):
    base = normal(5000, 1000)
    ours, theirs = base.copy(), base.copy()
    ours[0] += 1
    theirs[0] += 1
    theirs[4500] -= 1
    manifests = [repo.manifest(repo.commit({"w": w})) for w in (ours, theirs, base)]
    reads = []
    read = CommitContent.read

    def counted(self, path, first, last):
        reads.append((first, last))
        return read(self, path, first, last)

    monkeypatch.setattr(CommitContent, "read", counted)
    found = comparing.similarity(manifests[:2], manifests[2], repo.objects, ["a", "b"])
    assert sorted(reads) == [(0, 0), (0, 0), (0, 0), (4, 4), (4, 4)]
    assert found.cosine[0][1] == pytest.approx(1 / 2**0.5, rel=1e-6)
    assert found.overlap[0][1] == 0.5

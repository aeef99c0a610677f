"""A leaf of which few chunks changed is stored as those chunks."""

import os
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore
from hypothesis import given, settings
from hypothesis import strategies as st

import vcjax
from vcjax import hashing, updates
from vcjax import tree as tree_package
from vcjax.errors import ConflictError
from vcjax.objects.header import read_chain
from vcjax.objects.layout import leaf_key

pytestmark = pytest.mark.smoke

LAYER = (1024, 1024)
LAYER_BYTES = 4 << 20


def stored_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def stacked(layers: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((layers, *LAYER), np.float32)


def test_one_changed_layer_of_a_stacked_leaf_costs_one_layer(tmp_path):
    repo = vcjax.Repository.init(tmp_path)
    tree = {"layers": stacked(8)}
    repo.commit(tree)
    before = stored_bytes(tmp_path)
    tree["layers"][3] += 1
    repo.commit(tree)
    assert LAYER_BYTES < stored_bytes(tmp_path) - before < LAYER_BYTES + 20_000
    np.testing.assert_array_equal(repo.restore()["layers"], tree["layers"])
    assert not np.array_equal(repo.restore("HEAD~1")["layers"], tree["layers"])


def test_chains_are_bounded_and_every_version_restores(tmp_path):
    repo = vcjax.Repository.init(tmp_path)
    array, versions = stacked(12), []
    for number in range(11):
        array = array.copy()
        array[number] *= 2
        versions.append(array)
        repo.commit({"layers": array})
    depths = []
    for age, version in enumerate(reversed(versions)):
        revision = f"HEAD~{age}"
        np.testing.assert_array_equal(repo.restore(revision)["layers"], version)
        chain = read_chain(repo.store, repo.manifest(revision).leaves["layers"].digest)
        assert [header.depth for header in chain] == list(range(len(chain)))[::-1]
        depths.append(len(chain) - 1)
    assert max(depths) == updates.MAX_DEPTH
    assert min(depths) == 0
    assert repo.fsck().ok


def test_a_mostly_changed_leaf_is_dense(tmp_path):
    repo = vcjax.Repository.init(tmp_path)
    array = stacked(4)
    repo.commit({"w": array})
    changed = array.copy()
    changed[:3] += 1
    repo.commit({"w": changed})
    [header] = read_chain(repo.store, repo.manifest().leaves["w"].digest)
    assert header.update == "dense"


def test_another_shape_or_dtype_is_dense(tmp_path):
    repo = vcjax.Repository.init(tmp_path)
    array = stacked(3)
    for version in (array, array[:2], array.view(np.int32), array.reshape(3, -1)):
        repo.commit({"w": version})
        [header] = read_chain(repo.store, repo.manifest().leaves["w"].digest)
        assert header.update == "dense"


def test_the_array_of_a_difference_opens_with_plain_tensorstore(tmp_path):
    repo = vcjax.Repository.init(tmp_path)
    array = stacked(4)
    repo.commit({"w": array})
    array[2] = 7
    repo.commit({"w": array})
    key = leaf_key(repo.manifest().leaves["w"].digest)
    path = os.fspath(tmp_path / key / "difference")
    stored = tensorstore.open({"driver": "zarr3", "kvstore": f"file://{path}/"}).result()
    np.testing.assert_array_equal(stored[2].read().result(), array[2])


def test_pruning_keeps_what_others_stand_on(tmp_path):
    repo = vcjax.Repository.init(tmp_path)
    array = stacked(6)
    repo.commit({"w": array})
    for layer in range(3):
        array = array.copy()
        array[layer] += 1
        repo.commit({"w": array})
    repo.prune(["HEAD~1", "HEAD~2", "HEAD~3"], "a test")
    np.testing.assert_array_equal(repo.restore()["w"], array)
    repo.gc(unsafe=True)
    np.testing.assert_array_equal(repo.restore()["w"], array)
    repo.commit({"w": stacked(1)})
    repo.prune(["HEAD~1"], "a test")
    assert len(list((tmp_path / "leaves").glob("*/*"))) == 1
    assert repo.fsck().ok


def test_a_damaged_base_is_named(tmp_path):
    repo = vcjax.Repository.init(tmp_path)
    array = stacked(4)
    repo.commit({"w": array})
    base = repo.manifest().leaves["w"].digest
    array = array.copy()
    array[0] += 1
    repo.commit({"w": array})
    chunk = tmp_path / leaf_key(base) / "c" / "2" / "0" / "0"
    data = bytearray(chunk.read_bytes())
    data[100] ^= 1
    chunk.write_bytes(data)
    with pytest.raises(vcjax.CorruptionError, match="'w'"):
        repo.restore()
    assert not repo.fsck().ok


@given(
    st.lists(st.sets(st.integers(0, 9), max_size=10), min_size=1, max_size=6),
)
@settings(max_examples=60, deadline=None)
def test_choosing_and_finding_chunks_agree(changes):
    """Whatever the history, following `choose_base` and `sources` gives the newest chunks."""
    chunks = [f"0:{i}" for i in range(10)]
    leaves: dict[str, tuple[Any, str | None, Any, int]] = {"leaf0": (tuple(chunks), None, None, 0)}
    last = "leaf0"
    for number, changed in enumerate(changes, 1):
        chunks = [f"{number}:{i}" if i in changed else chunk for i, chunk in enumerate(chunks)]
        chain = [last]
        while base := leaves[chain[-1]][1]:
            chain.append(base)
        bases = [
            updates.BaseLeaf(name, leaves[name][0], leaves[name][3])
            for name in dict.fromkeys([chain[0], chain[-1]])
        ]
        choice = updates.choose_base(chunks, bases)
        last = f"leaf{number}"
        if choice is None:
            leaves[last] = (tuple(chunks), None, None, 0)
        else:
            assert choice.depth <= updates.MAX_DEPTH
            leaves[last] = (tuple(chunks), choice.base, choice.own, choice.depth)
        chain = [last]
        while base := leaves[chain[-1]][1]:
            chain.append(base)
        holders = updates.sources(10, [leaves[name][2] for name in chain])
        assert [leaves[chain[at]][0][i] for i, at in enumerate(holders)] == chunks


@given(
    st.tuples(*[st.integers(1, 40)] * 3),
    st.data(),
)
@settings(max_examples=60, deadline=None)
def test_runs_cover_exactly_the_chunks_asked_for(shape, data):
    big = tuple(n * 37 for n in shape)
    count = hashing.chunk_count(big, 8)
    wanted = sorted(data.draw(st.sets(st.integers(0, count - 1))))
    covered = []
    for first, last in hashing.chunk_runs(big, 8, wanted):
        covered += range(first, last + 1)
        region = hashing.chunk_slices(big, 8, first, last)
        ranges = list(hashing.chunk_ranges(big, 8))[first : last + 1]
        size = 8 * np.prod([part.stop - part.start for part in region])
        assert size == ranges[-1][1] - ranges[0][0] == sum(stop - start for start, stop in ranges)
    assert covered == wanted


@pytest.fixture
def transfers(monkeypatch):
    """JAX arrays count as remote, are digested by the JAX kernel, and fetches are counted."""
    fetched = []
    from vcjax.hashing import leaves
    from vcjax.tree import leaf

    for module in (leaf, tree_package):  # the package keeps what was asked of it before
        monkeypatch.setattr(module, "is_remote", lambda data: isinstance(data, jax.Array))
    monkeypatch.setattr(leaves, "faster_on", lambda device: "device")
    fetch = leaf._fetched

    def counted(data, region):
        host = fetch(data, region)
        if isinstance(data, jax.Array):
            fetched.append(host.nbytes)
        return host

    monkeypatch.setattr(leaf, "_fetched", counted)
    return fetched


def test_only_what_changed_is_transferred(tmp_path, transfers):
    """An unchanged leaf costs no transfer, one layer of a stacked leaf costs one layer."""
    repo = vcjax.Repository.init(tmp_path)
    tree = {"layers": jnp.asarray(stacked(4)), "frozen": jnp.ones((256, 1024))}
    repo.commit(tree)
    assert sum(transfers) == 4 * LAYER_BYTES + (1 << 20)
    transfers.clear()
    repo.commit(tree)
    assert transfers == []
    before = stored_bytes(tmp_path)
    tree["layers"] = tree["layers"].at[2].add(1)
    repo.commit(tree)
    assert transfers == [LAYER_BYTES]
    assert stored_bytes(tmp_path) - before < LAYER_BYTES + 20_000
    np.testing.assert_array_equal(repo.restore()["layers"], tree["layers"])


def test_a_background_commit_fetches_no_unchanged_leaf(tmp_path, transfers):
    repo = vcjax.Repository.init(tmp_path)
    tree = {"w": jnp.ones((256, 1024)), "frozen": jnp.full((256, 1024), 2.0)}
    repo.commit_async(tree).result()
    transfers.clear()
    tree = {**tree, "w": tree["w"] + 6}
    future = repo.commit_async(tree)
    tree["w"].delete()
    tree["frozen"].delete()
    restored = repo.restore(future.result())
    assert sum(transfers) == 1 << 20
    np.testing.assert_array_equal(restored["w"], 7)
    np.testing.assert_array_equal(restored["frozen"], 2)


def test_a_background_commit_fetches_only_the_chunks_that_changed(tmp_path, transfers):
    repo = vcjax.Repository.init(tmp_path)
    tree = {"layers": jnp.asarray(stacked(4))}
    repo.commit(tree)
    transfers.clear()
    changed = tree["layers"].at[2].add(1)
    expected = np.array(changed)
    future = repo.commit_async({"layers": changed})
    changed.delete()  # as if donated
    future.result()
    assert transfers == [LAYER_BYTES]
    np.testing.assert_array_equal(repo.restore()["layers"], expected)
    assert repo.fsck().ok


def test_more_is_needed_than_a_background_commit_fetched(tmp_path, transfers, monkeypatch):
    """The branch is moved to a commit without the leaf while the commit is on its way."""
    repo, other = vcjax.Repository.init(tmp_path), vcjax.Repository.open(tmp_path)
    repo.commit({"bias": np.zeros(3)}, "without")
    tree = {"layers": jnp.asarray(stacked(4)), "bias": np.zeros(3)}
    repo.commit(tree, "with")
    changed = {**tree, "layers": tree["layers"].at[2].add(1)}
    monkeypatch.setattr(repo._writer, "_alone", partial(_after, other.undo, repo._writer._alone))
    future = repo.commit_async(changed)
    with pytest.raises(ConflictError, match="branch has moved"):
        future.result()
    with pytest.raises(ConflictError):
        repo.wait_until_finished()
    assert repo.resolve("HEAD").message == "without"
    repo.refresh()
    repo.commit(changed, "again")
    np.testing.assert_array_equal(repo.restore()["layers"], changed["layers"])


def _after(first, then, *arguments):
    first()
    return then(*arguments)

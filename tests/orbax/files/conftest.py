"""Trees, runs of Orbax, and ways in and out of a repository: functions that tests ask for."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from absl import logging

from vcjax.orbax.files.export import run_export
from vcjax.orbax.files.export_plan import plan_export
from vcjax.orbax.files.import_ import plan_import, run_import
from vcjax.orbax.files.steps import read_directory

Pair = collections.namedtuple("Pair", "mu nu")


@pytest.fixture(autouse=True)
def quiet():
    """Orbax warns of what is no fault, and pytest would print it."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    yield
    logging.set_verbosity(before)


def tree():
    return {
        "params": {"w": jnp.arange(12.0).reshape(3, 4), "b.c": jnp.ones(3, jnp.bfloat16)},
        "list": [np.arange(4, dtype=np.int8).reshape(2, 2), jnp.zeros(2)],
        "nested": (jnp.ones(1), Pair(jnp.full(2, 7), 2)),
        "empty": {"dict": {}, "list": [], "none": None},
        "scalars": {"int": 3, "float": 2.5, "bool": True, "numpy": np.float32(1.5)},
        "key": jax.random.key(3),
        "numbers": {10: np.ones(1), 5: np.zeros(2)},
    }


def options(**more):
    return ocp.CheckpointManagerOptions(enable_async_checkpointing=False, **more)


def import_all(repo, folder, branch=None, prefix=None):
    plan = plan_import(repo, read_directory(folder, prefix), branch)
    return [commit for _, commit in run_import(repo, plan)]


def assert_same(ours, theirs):
    """The same containers, dtypes and bytes, where `theirs` is what Orbax itself restores."""
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        if isinstance(b, jax.Array) and jnp.issubdtype(b.dtype, jax.dtypes.prng_key):
            assert a.dtype == b.dtype
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        if isinstance(b, jax.Array | np.ndarray):
            assert isinstance(a, jax.Array) == isinstance(b, jax.Array)
            assert (a.dtype, a.shape) == (b.dtype, b.shape)
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
        else:
            assert a == b


def export(repo, revision, target, **more):
    plan = plan_export(repo, revision, target, **more)
    run_export(repo, plan)
    return plan.target


@pytest.fixture(name="tree")
def tree_():
    return tree


@pytest.fixture(name="options")
def options_():
    return options


@pytest.fixture(name="import_all")
def import_all_():
    return import_all


@pytest.fixture(name="assert_same")
def assert_same_():
    return assert_same


@pytest.fixture(name="export")
def export_():
    return export


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A manager's directory: steps 1 to 3, of which step 2 changes one leaf of two."""
    folder = tmp_path_factory.mktemp("run") / "saved"
    weights = np.arange(20_000, dtype=np.float32)
    best = options(best_fn=lambda metrics: -metrics["loss"])
    with ocp.CheckpointManager(folder, options=best, metadata={"model": "tiny"}) as manager:
        for step in (1, 2, 3):
            saved = {"same": weights, "new": weights * min(step, 2), "step": step}
            manager.save(
                step,
                args=ocp.args.StandardSave(saved),
                metrics={"loss": 1 / step, "by": {"task": 2.0 * step}, "note": "x"},
                custom_metadata={"lr": 0.1 * step},
            )
    (folder / "4.orbax-checkpoint-tmp-17").mkdir()
    (folder / "4.orbax-checkpoint-tmp-17" / "_METADATA").write_text("{}")
    (folder / "tensorboard").mkdir()
    return folder

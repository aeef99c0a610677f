"""How the executor cuts leaves must not show in what it makes of them."""

from pathlib import Path

import jax
import numpy as np
import pytest

from vcjax import merging
from vcjax.streaming import job as jobs
from vcjax.streaming import model as models
from vcjax.streaming import slice_run as slice_runs
from vcjax.streaming.executor import execute
from vcjax.streaming.merge import Merge

from .executed import merged

pytestmark = pytest.mark.usefixtures("compile_quickly")


@pytest.fixture(autouse=True)
def short_slices(monkeypatch):
    """So that small leaves are cut into several slices, the last of them padded."""
    monkeypatch.setattr(jobs, "SLICES", (1 << 10, 1 << 12))
    monkeypatch.setattr(jobs, "SMALL", 1 << 8)


def trimmed(x, density, tie_rule="exact"):
    """The largest magnitudes in NumPy, lowest index first among ties."""
    flat, kept = x.reshape(-1), int(np.ceil(density * x.size))
    order = np.argsort(-np.abs(flat), kind="stable")[:kept]
    mask = np.isin(np.arange(x.size), order)
    if tie_rule == ">=" and kept:
        mask = np.abs(flat) >= np.abs(flat[order[-1]])
    return np.where(mask, flat, 0).reshape(x.shape)


@pytest.fixture(params=["by the host", "by the program"])
def counted(request, monkeypatch):
    """Where elements are counted that equal a threshold; accelerators do it in the program."""
    if request.param == "by the program":
        monkeypatch.setattr(slice_runs.SliceRun, "_is_picked", lambda *_: False)


@pytest.mark.usefixtures("counted")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("densities", "tie_rule", "count", "devices"),
    [
        ([0.3], "exact", 3, 1),
        ([0.3], "exact", 3, 4),
        ([0.9], "exact", 10, 1),
        ([0.6, 0.1], "exact", 2, 1),
        ([0.6, 0.5], ">=", 2, 1),
        ([0.0], "exact", 2, 1),
        ([0.0], ">=", 2, 1),
    ],
)
def test_ties_are_kept_in_order_across_slices(densities, tie_rule, count, devices, dtype):
    # Small whole numbers: each magnitude has thousands of ties, and sums are exact.
    rng = np.random.default_rng(5)
    trees = [{"w": rng.integers(-2, 3, (3, 5000)).astype(dtype)} for _ in range(count)]
    base = {"w": np.zeros((3, 5000), dtype)}
    steps = [merging.trim(density, tie_rule) for density in densities]
    ends = merging.task_vectors(), merging.add_base()
    method = merging.chain(ends[0], *steps, merging.weighted_sum(), ends[1])
    want = 0
    for model in trees:
        values = model["w"]
        for density in densities:
            values = trimmed(values, density, tie_rule)
        want = want + values
    found = merged(method, trees, base, weights=[1] * count, devices=jax.devices()[:devices])
    np.testing.assert_array_equal(found["w"], want)


@pytest.mark.smoke
@pytest.mark.parametrize(
    "method", [merging.model_stock(), merging.karcher(), merging.ties_whole(0.3)], ids=str
)
def test_leaves_that_are_done_change_no_bit_of_the_others(method):
    shapes = {"long": (4, 4096), "short": (3, 1 << 10)}
    trees = [
        {name: np.random.default_rng(i).normal(size=s).astype("f4") for name, s in shapes.items()}
        for i in range(4)
    ]
    base = models.of_tree(trees.pop()) if method.needs_base else None
    plan = Merge(tuple(map(models.of_tree, trees)), method, base).jobs()

    def short(pieces):
        parts = [piece.values for piece in pieces if piece.job.path == "short"]
        return np.concatenate([part.reshape(-1) for part in parts])

    rest = list(execute(plan, done={"long"}))
    assert {piece.job.path for piece in rest} == {"short"}
    np.testing.assert_array_equal(short(rest), short(execute(plan)))
    assert not list(execute(plan, done=set(shapes)))


def test_many_models_may_be_spread_over_devices(processes):
    # In a process of its own: programs of several devices that wait for each other do so for ever.
    code = """
        import sys
        import jax, numpy as np
        from vcjax import merging
        from vcjax.streaming import job as jobs
        sys.path.append(sys.argv[1])
        from executed import merged
        jax.config.update("jax_num_cpu_devices", 4)
        jax.config.update("jax_disable_most_optimizations", True)
        jobs.SLICES = (1 << 12,)
        trees = [{"w": np.random.default_rng(i).normal(size=(6, 5000))} for i in range(8)]
        method = merging.chain(merging.trim(0.7), merging.trim(0.4), merging.weighted_sum())
        one = merged(method, trees)["w"]
        for _ in range(3):
            several = merged(method, trees, devices=jax.devices())["w"]
            np.testing.assert_allclose(several, one, rtol=1e-12, atol=1e-12)
        print(len(jax.devices()), "devices")
    """
    assert processes.python(code, Path(__file__).parent).finish()[0] == "4 devices\n"

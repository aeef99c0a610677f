"""Sweeps: every combination, each as if merged alone, in one compiled call."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vcjax import errors, merging

from ..compiled import scratch_bytes


def tree(seed: int) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    a, b = (random.normal(size=shape).astype("f") for shape in ((6, 5), (4,)))
    return {"a": {"w": a}, "b": b}


BASE, MODELS = tree(9), [tree(0), tree(1)]
TARGET = jnp.ones((6, 5))


def evaluate(merged: Any) -> dict[str, Any]:
    return {"loss": jnp.mean((merged["a"]["w"] - TARGET) ** 2), "b": merged["b"]}


def alone(method: merging.MergeMethod, **more: Any) -> dict[str, Any]:
    return evaluate(merging.merge(MODELS, method, BASE, **more))


@pytest.mark.parametrize("batch", [1, 2, 4, None])
def test_every_combination_is_what_one_merge_gives(batch: int | None) -> None:
    grid = {"threshold": [0.2, 0.5, 2.0], "scale": [0.1, 0.7]}
    found = merging.sweep(merging.consensus, grid, evaluate, MODELS, BASE, batch=batch)
    assert found.shape == (3, 2)
    assert found.values["b"].shape == (3, 2, 4)
    losses = []
    single = jax.jit(lambda point: alone(merging.consensus(**point)))
    for i, point in enumerate(found.points()):
        expected = single(point)
        where = np.unravel_index(i, found.shape)
        losses.append(float(expected["loss"]))
        np.testing.assert_allclose(found.values["loss"][where], expected["loss"], rtol=1e-5)
        np.testing.assert_allclose(found.values["b"][where], expected["b"], rtol=1e-5, atol=1e-6)
    assert found.best("loss", lowest=True) == found.points()[int(np.argmin(losses))]
    assert found.best("loss") == found.points()[int(np.argmax(losses))]


def test_one_program_serves_all_numbers_and_one_more_each_option() -> None:
    traced = []

    def counted(merged: Any) -> Any:
        traced.append(1)
        return merged["b"].sum()

    grid = {
        "density": np.linspace(0.1, 0.9, 7),  # traced, though static where it is a number
        "normalize": [False, True],
        "scale": [0.3, 0.9],
    }
    found = merging.sweep(merging.ties, grid, counted, MODELS, BASE)
    assert found.values.shape == (7, 2, 2)
    assert len(traced) == 2
    for where in ((0, 0, 0), (6, 1, 1)):
        point = {name: values[i] for (name, values), i in zip(grid.items(), where, strict=True)}
        expected = merging.merge(MODELS, merging.ties(**point), BASE)["b"].sum()
        np.testing.assert_allclose(found.values[where], expected, rtol=1e-5)


def test_weights_and_seeds_are_swept_too() -> None:
    rows = [[1.0, 0.0], [0.25, 0.75]]
    found = merging.sweep(merging.linear(), {"weights": rows}, evaluate, MODELS)
    for i, row in enumerate(rows):
        expected = evaluate(merging.merge(MODELS, merging.linear(), weights=row))
        np.testing.assert_allclose(found.values["b"][i], expected["b"], rtol=1e-6)
    dare = merging.dare_linear(0.5)
    found = merging.sweep(dare, {"key": [3, 4]}, evaluate, MODELS, BASE)
    for i, seed in enumerate((3, 4)):
        np.testing.assert_allclose(
            found.values["b"][i], alone(dare, key=seed)["b"], rtol=1e-6, atol=1e-6
        )


def test_a_method_of_ones_own_and_a_partition() -> None:
    def mine(inner: Any, outer: Any) -> merging.MergeMethod:
        rules = {"a/**": merging.task_arithmetic(inner)}
        return merging.partition(rules, default=merging.task_arithmetic(outer))

    grid = {"inner": [0.0, 1.0], "outer": [0.5]}
    found = merging.sweep(mine, grid, evaluate, MODELS, BASE)
    expected = alone(mine(1.0, 0.5))
    np.testing.assert_allclose(found.values["b"][1, 0], expected["b"], rtol=1e-6)
    np.testing.assert_allclose(found.values["loss"][1, 0], expected["loss"], rtol=1e-6)


def test_leaves_that_are_no_arrays_come_along() -> None:
    trees = [{**model, "step": 3, "name": "x", "on": None} for model in (*MODELS, BASE)]

    def scored(merged: Any) -> Any:
        assert (merged["step"], merged["name"]) == (3, "x")
        return merged["b"][0]

    grid = {"scale": [1.0]}
    found = merging.sweep(merging.task_arithmetic, grid, scored, trees[:2], trees[2])
    assert found.values.shape == (1,)


def test_memory_does_not_grow_with_the_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the compiled call needs beside its arguments, for a leaf of 4 MB."""
    needed, jit = [], jax.jit

    def measured(function: Any, **options: Any) -> Any:
        def call(points: Any, arrays: Any) -> Any:
            compiled = jit(function, **options).lower(points, arrays).compile()
            needed.append(scratch_bytes(compiled))
            return compiled(points, arrays)

        return call

    monkeypatch.setattr("vcjax.merging.tuning.sweep.jax.jit", measured)
    model = {"w": np.ones((1024, 1024), "f")}
    for number, batch in ((4, 1), (64, 1), (4, 4)):
        grid = {"scale": np.linspace(0, 1, number).tolist()}
        total = lambda tree: (tree["w"] * tree["w"][::-1]).sum()  # noqa: E731
        merging.sweep(merging.task_arithmetic, grid, total, [model], model, batch=batch)
    assert needed[1] <= needed[0] + 4096
    assert needed[2] > needed[0] + 4 * 2**20, "it measures nothing"


def test_nan_is_never_best() -> None:
    found = merging.Sweep({"scale": [1, 2, 3]}, np.array([np.nan, 5.0, 4.0]))
    assert found.best() == {"scale": 2}
    assert found.best(lowest=True) == {"scale": 3}


MISTAKES = [
    ({}, "grid is empty"),
    ({"scale": []}, "grid is empty"),
    ({"scael": [1.0]}, "unexpected keyword argument 'scael'"),
    ({"scale": [1.0, [2.0, 3.0]]}, "scale"),
    ({"tie_rule": ["none"]}, "tie_rule='none' is not an option"),
]


@pytest.mark.parametrize(("grid", "message"), MISTAKES)
def test_mistakes_are_told(grid: Any, message: str) -> None:
    with pytest.raises(errors.MergeError, match=message):
        merging.sweep(merging.ties, grid, evaluate, MODELS, BASE)


def test_a_number_that_decides_the_program_is_told() -> None:
    def mine(share: Any) -> merging.MergeMethod:
        return merging.iso_cts(common=share)

    with pytest.raises(errors.MergeError, match="share decides the program"):
        merging.sweep(mine, {"share": [0.5, 0.8]}, evaluate, MODELS, BASE)
    # annotated, as in the recipe itself, every value is a program of its own
    found = merging.sweep(merging.iso_cts, {"common": [0.5, 1.0]}, evaluate, MODELS, BASE)
    for i, common in enumerate((0.5, 1.0)):
        expected = alone(merging.iso_cts(common=common))["loss"]
        np.testing.assert_allclose(found.values["loss"][i], expected, rtol=1e-4)


def test_best_needs_a_metric_that_is_a_number() -> None:
    found = merging.sweep(merging.task_arithmetic, {"scale": [0.5]}, evaluate, MODELS, BASE)
    with pytest.raises(errors.MergeError, match="nothing that was evaluated"):
        found.best()
    with pytest.raises(errors.MergeError, match=r"shape \[1, 4\]"):
        found.best("b")

"""Steps and methods of one's own: in memory, jitted, differentiated, stored and merged again."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vcjax
from vcjax import errors, merging
from vcjax.merging import Measure, Sliced, Stack, Transform

LARGE = 2**21 + 5
"""Elements of a leaf that is cut: slices have 2^20 at most."""


def mapped(stack: Stack, function: Any) -> Stack:
    return dataclasses.replace(stack, values=tuple(map(function, stack.values)))


def halved(stack: Stack, totals: Any) -> Stack:
    return mapped(stack, lambda x: x / 2)


@merging.transform()
def halve(factor: float = 0.5, twice: bool = False) -> Transform:
    """A step that a decorated function makes."""
    return Transform(
        lambda stack, totals: mapped(stack, lambda x: x * factor * (factor if twice else 1)),
        locality="element",
        per_model=True,
        linear=True,
    )


@merging.transform()
def divide_by_sum(times: float = 1.0) -> Transform:
    """A step that must see the leaf, and says how it works on slices of it."""

    def divided(stack: Stack, sums: Any) -> Stack:
        pairs = zip(stack.values, sums, strict=True)
        return dataclasses.replace(stack, values=tuple(times * x / s for x, s in pairs))

    def sums(stack: Stack) -> Any:
        return jnp.stack([jnp.sum(x) for x in stack.values])

    def slices(dtype: np.dtype) -> Sliced:
        measure = Measure(
            lambda stack, facts, state: sums(stack), lambda facts, state, total: total
        )
        return Sliced(lambda stack, facts, state, carry: (divided(stack, state), carry), (measure,))

    return Transform(lambda stack, totals: divided(stack, sums(stack)), slices=slices)


@merging.recipe
def quarter(factor: float = 0.25) -> merging.MergeMethod:
    """A method that a decorated function makes."""
    return around(halve(factor))


def around(step: Transform) -> merging.MergeMethod:
    return merging.chain(
        merging.task_vectors(), step, merging.weighted_sum(normalize=True), merging.add_base()
    )


PLAIN = Transform(halved, locality="element")
NAMELESS = Transform(lambda stack, totals: mapped(stack, lambda x: x / 2), locality="element")
WHOLE = Transform(halved, name="halve_whole")
FOLDED = Transform(halved, per_model=True)
REPLACED = dataclasses.replace(merging.scale_by(3.0), apply=halved)
STEPS = {
    "plain": PLAIN,
    "nameless": NAMELESS,
    "whole": WHOLE,
    "folded": FOLDED,
    "replaced": REPLACED,
    "registered": halve(),
}


def model(seed: int, size: int = LARGE) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    return {
        "large": np.asarray(random.normal(size=size), np.float32),
        "small": np.asarray(random.normal(size=(3, 4)), np.float32),
    }


def expected(models: list[Any], base: Any, share: float = 0.5) -> Any:
    return jax.tree.map(lambda b, *x: b + share * (sum(x) / len(x) - b), base, *models)


def close(ours: Any, theirs: Any, rtol: float = 1e-4) -> None:
    for path in theirs:
        np.testing.assert_allclose(ours[path], theirs[path], rtol=rtol, atol=1e-5)


@pytest.mark.parametrize("name", STEPS)
def test_a_step_runs_in_memory_jitted_and_stored(name: str, repo: Any) -> None:
    models, base, method = [model(0), model(1)], model(9), around(STEPS[name])
    assert method.can_be_made_again == (name == "registered")
    result = expected(models, base)
    close(vcjax.merge(models, method, base=base), result)
    close(jax.jit(lambda trees: vcjax.merge(trees, method, base=base))(models), result)
    digests = [repo.commit(one, "model").digest for one in models]
    merge = repo.merge_models(digests, method, base=repo.model(repo.commit(base, "base")))
    close(repo.restore(merge), result)


def test_a_step_is_cut_in_slices(repo: Any) -> None:
    from vcjax.streaming import model as models
    from vcjax.streaming.job import cut, slice_length
    from vcjax.streaming.merge import Merge

    given = tuple(models.of_tree(model(seed)) for seed in range(2))
    for step in (PLAIN, halve(), divide_by_sum()):
        jobs = Merge(given, around(step), models.of_tree(model(9))).jobs()
        [job] = [job for job in jobs if job.path == "large"]
        assert len(list(cut(job, slice_length(jobs)).starts(job.size))) > 1
    assert Merge(given, around(WHOLE), models.of_tree(model(9))).jobs()[0].slices is None


def test_a_slice_rule_stands_with_its_step(repo: Any) -> None:
    models, base = [model(0), model(1)], jax.tree.map(np.zeros_like, model(9))
    method = around(divide_by_sum(2.0))
    result = vcjax.merge(models, method, base=base)
    np.testing.assert_allclose(np.asarray(result["small"]).sum(), 2, rtol=1e-4)
    digests = [repo.commit(one, "model").digest for one in models]
    merge = repo.merge_models(digests, method, base=repo.model(repo.commit(base, "base")))
    close(repo.restore(merge), result, 1e-3)


def test_gradients_go_through_models_coefficients_and_closures() -> None:
    models, base = [model(0, 7), model(1, 7)], model(9, 7)

    def loss(factor: Any, trees: Any, make: Any) -> Any:
        merged = vcjax.merge(trees, around(make(factor)), base=base)
        return sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(merged))

    def closed(factor: Any) -> Transform:
        return Transform(
            lambda stack, totals: mapped(stack, lambda x: x * factor), locality="element"
        )

    def formula(factor: Any, trees: Any) -> Any:
        merged = expected(trees, base, factor)
        return sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(merged))

    wanted = jax.grad(formula, argnums=(0, 1))(0.3, models)
    for make in (halve, closed):
        found = jax.jit(jax.grad(loss, argnums=(0, 1)), static_argnums=2)(0.3, models, make)
        for a, b in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_a_coefficient_of_a_registered_step_is_no_part_of_the_program() -> None:
    traced = 0

    @merging.transform()
    def counted(factor: float) -> Transform:
        def apply(stack: Stack, totals: Any) -> Stack:
            nonlocal traced
            traced += 1
            return mapped(stack, lambda x: x * factor)

        return Transform(apply, locality="element")

    for factor in (0.1, 0.2, 0.3):
        merged = vcjax.merge([{"w": 1.0}], merging.chain(counted(factor), merging.take()))
        assert merged["w"] == np.float32(factor)
    assert traced == 1


@pytest.mark.parametrize("method", [around(halve(0.25)), quarter(), merging.chain(quarter())])
def test_what_a_registered_function_made_is_merged_again(
    method: merging.MergeMethod, repo: Any, cli_in: Any
) -> None:
    models = [repo.commit(model(seed, 5), "model").digest for seed in range(2)]
    base = repo.model(repo.commit(model(9, 5), "base"))
    merge = repo.merge_models(models, method, base=base)
    recorded = merge.provenance["method"]
    assert f"{__name__}:" in str(recorded)
    assert merging.to_config(merging.from_config(**recorded)) == recorded
    assert repo.merges.rerun(merge).is_same
    code, out, _ = cli_in(repo, "merge", "--rerun", merge.digest)
    assert code == 0, out


@pytest.mark.parametrize("name", sorted(STEPS.keys() - {"registered"}))
def test_what_no_registered_function_made_says_so(name: str, repo: Any, cli_in: Any) -> None:
    models = [repo.commit(model(seed, 5), "model").digest for seed in range(2)]
    base = repo.model(repo.commit(model(9, 5), "base"))
    merge = repo.merge_models(models, around(STEPS[name]), base=base)
    step = merge.provenance["method"]["parameters"]["steps"][1]
    assert step["name"] == f"unregistered {STEPS[name].name}"
    with pytest.raises(errors.MergeError, match="cannot be made again") as caught:
        repo.merges.rerun(merge)
    assert "vcjax.merging.transform" in str(caught.value.hint)
    code, _, err = cli_in(repo, "merge", "--rerun", merge.digest)
    assert code == 1
    assert STEPS[name].name in err


def test_names_of_steps() -> None:
    assert PLAIN.name == f"{__name__}:halved"
    assert NAMELESS.name == f"{__name__}:<lambda>"
    assert halve().name == f"{__name__}:halve"
    assert merging.trim(0.5).name == "trim"
    assert (REPLACED.name, REPLACED.maker) == ("scale_by", None)


def test_a_name_from_a_commit_imports_nothing(tmp_path: Any, monkeypatch: Any) -> None:
    (tmp_path / "tempting.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("tempting:make", "unregistered tempting:make"):
        with pytest.raises(errors.MergeError) as caught:
            merging.from_config(name, {})
        assert caught.value.hint


def test_merges_by_nameless_steps_are_never_taken_for_each_other() -> None:
    from vcjax.streaming import model as models
    from vcjax.streaming.merge import Merge

    given = (models.of_tree(model(0, 5)),)
    named, nameless = (Merge(given, around(STEPS[n])) for n in ("registered", "nameless"))
    assert named.fingerprint == dataclasses.replace(named).fingerprint
    assert nameless.fingerprint != dataclasses.replace(nameless).fingerprint


def test_bad_makers_are_refused() -> None:
    with pytest.raises(errors.MergeError, match=r"\*steps have no names"):
        merging.recipe(lambda *steps: merging.chain(*steps))  # pyright: ignore
    with pytest.raises(errors.MergeError, match="makes int, and not a Transform"):
        merging.transform()(lambda: 3)()  # pyright: ignore
    with pytest.raises(errors.MergeError, match="makes Transform, and not a MergeMethod") as caught:
        merging.recipe(lambda: halve())()  # pyright: ignore
    assert "merging.chain" in str(caught.value.hint)
    own = merging.transform()(lambda function: Transform(halved))
    with pytest.raises(errors.MergeError, match="no parameter that can be recorded"):
        merging.to_config(own(print))


def test_a_registered_step_settles_conflicts_and_does_so_again(repo: Any) -> None:
    base = {"w": np.zeros(3, np.float32)}
    repo.commit(base, "base")
    repo.branch("side")
    repo.commit({"w": base["w"] + 2}, "ours")
    repo.commit({"w": base["w"] + 6}, "theirs", branch="side")
    merge = repo.merge("side", method=quarter())
    np.testing.assert_array_equal(repo.restore(merge)["w"], np.full(3, 1.0))
    assert repo.merges.rerun(merge).is_same


def test_a_nameless_step_settles_conflicts_and_says_that_it_cannot_do_so_again(repo: Any) -> None:
    repo.commit(model(0), "base")
    repo.branch("side")
    repo.commit(model(1), "theirs", branch="side")
    repo.commit(model(2), "ours")
    nameless = merging.chain(STEPS["nameless"], merging.weighted_sum(normalize=True))
    commit = repo.merge("side", method=nameless)
    assert "unregistered" in str(commit.provenance["method"])
    given = [model(2), model(1)]
    expected = merging.merge(given, nameless)
    restored = repo.restore(commit)
    assert all(
        np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(expected), strict=True)
    )
    with pytest.raises(errors.MergeError, match="cannot be made again"):
        repo.merges.rerun(commit)

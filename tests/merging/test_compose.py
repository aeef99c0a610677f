import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vcjax import errors, merging

pytestmark = pytest.mark.smoke


def trees() -> list[dict]:
    return [
        {
            "body": {"a": jnp.full(3, float(i)), "b": jnp.full(3, float(i))},
            "head": jnp.full(2, float(i)),
        }
        for i in (1, 3)
    ]


def test_partition_takes_the_first_rule_that_matches() -> None:
    method = merging.partition(
        {"body/a": merging.passthrough(scale=10.0), "body": merging.keep()}, merging.average()
    )
    out = merging.merge(trees(), method)
    assert [out["body"]["a"][0], out["body"]["b"][0], out["head"][0]] == [10, 1, 2]
    config = json.loads(json.dumps(merging.to_config(method)))
    again = merging.merge(trees(), merging.from_config(**config))
    assert jax.tree.all(jax.tree.map(lambda x, y: bool((x == y).all()), out, again))


def test_masked_keeps_the_base_elsewhere() -> None:
    base = jax.tree.map(lambda x: x - 100, trees()[0])
    out = merging.merge(trees(), merging.masked(merging.average(), "head"), base=base)
    assert (out["head"][0], out["body"]["a"][0]) == (2, -99)


def test_chain_of_transforms_is_the_recipe() -> None:
    own = merging.chain(
        merging.task_vectors(),
        merging.trim(0.5),
        merging.elect_sign(),
        merging.disjoint_mean(),
        merging.scale_by(0.3),
        merging.add_base(),
    )
    base = jax.tree.map(jnp.zeros_like, trees()[0])
    for method in (own, merging.from_config(**json.loads(json.dumps(merging.to_config(own))))):
        ours = merging.merge(trees(), method, base)
        theirs = merging.merge(trees(), merging.ties(0.5, 0.3), base)
        np.testing.assert_array_equal(ours["head"], theirs["head"])


def test_rules_that_cover_nothing_or_too_little_are_refused() -> None:
    with pytest.raises(errors.MergeError, match="no leaf path matches 'tail'"):
        merging.merge(trees(), merging.masked(merging.average(), "tail"))
    with pytest.raises(errors.MergeError, match="no rule of the partition covers"):
        merging.merge(trees(), merging.partition({"head": merging.average()}))
    with pytest.raises(errors.MergeError, match="no leaf path matches 'hea'"):
        merging.merge(trees(), weights={"hea": [1.0, 2.0]})


def test_differences_of_structure_are_listed_by_path() -> None:
    a, b = trees()
    b["body"]["a"] = jnp.zeros(4)
    b["tail"] = b.pop("head")
    with pytest.raises(errors.StructureError) as caught:
        merging.merge([a, b])
    assert caught.value.problems == (
        "body/a: [3] in model 1, [4] in model 2",
        "head: not in model 2",
        "tail: in model 2 only",
    )


def test_leaves_that_are_no_floats_come_from_the_first_model() -> None:
    def model(step: int) -> dict:
        return {
            "step": jnp.int32(step),
            "key": jax.random.key(step),
            "on": step > 1,
            "w": float(step),
        }

    out = merging.merge([model(3), model(1)], merging.average())
    assert (int(out["step"]), out["on"], float(out["w"])) == (3, True, 2.0)
    assert out["key"] == jax.random.key(3)


def test_complex_leaves() -> None:
    models = [{"w": jnp.array([1 + 2j])}, {"w": jnp.array([3 - 4j])}]
    base = {"w": jnp.array([1 + 0j])}
    assert merging.merge(models)["w"][0] == 2 - 1j
    assert merging.merge(models, merging.task_arithmetic(), base)["w"][0] == 3 - 2j
    with pytest.raises(errors.MergeError, match="complex leaf 'w'"):
        merging.merge(models, merging.ties(), base)


def test_output_dtype_can_be_chosen() -> None:
    models = [{"w": jnp.ones(3, jnp.bfloat16)}, {"w": jnp.full(3, 2, jnp.float32)}]
    assert merging.merge(models)["w"].dtype == jnp.bfloat16
    assert merging.merge(models, dtype=jnp.float32)["w"].dtype == jnp.float32


def test_parameters_out_of_range_are_refused() -> None:
    with pytest.raises(errors.MergeError, match=r"density=20 is not between 0 and 1"):
        merging.ties(density=20)
    with pytest.raises(errors.MergeError, match="tie_rule='>'"):
        merging.ties(tie_rule=">")
    with pytest.raises(errors.MergeError, match="leaves"):
        merging.della(0.9, 0.2)
    with pytest.raises(errors.MergeError, match=r"no merge method 'os\.system'"):
        merging.from_config("os.system", {})
    with pytest.raises(errors.MergeError, match="exactly 2 models; 3"):
        merging.merge([{"w": 1.0}] * 3, merging.slerp())


def test_traced_coefficients_cannot_be_recorded() -> None:
    def record(scale: jax.Array) -> jax.Array:
        merging.to_config(merging.ties(scale=scale))
        return scale

    with pytest.raises(errors.MergeError, match="traced"):
        jax.jit(record)(1.0)
    assert merging.to_config(merging.ties(scale=jnp.float32(0.5)))["parameters"]["scale"] == 0.5


def test_views_are_checked() -> None:
    method = merging.view_as(merging.iso_c(), {"head": merging.View((0,), (0,))})
    with pytest.raises(errors.MergeError, match="each axis of 'head'"):
        merging.merge(trees(), method, base=trees()[0])
    leaf = jnp.arange(24.0).reshape(2, 3, 4)
    view = merging.View((1,), (0,), (2,))
    assert view.matrices(leaf).shape == (4, 3, 2)
    np.testing.assert_array_equal(view.restore(view.matrices(leaf), leaf.shape), leaf)

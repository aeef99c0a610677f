"""As real codebases call it: the same functions with Orbax and with ours in its place."""

import functools
import signal

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training import train_state
from jax.sharding import Mesh, NamedSharding, PartitionSpec

pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided")  # of Orbax


def assert_same(tree, expected):
    assert jax.tree.structure(tree) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, tree, expected)


# -- Flax's guide for Linen ----------------------------------------------------


class MLP(flax.linen.Module):
    @flax.linen.compact
    def __call__(self, x):
        return flax.linen.Dense(2)(flax.linen.relu(flax.linen.Dense(4)(x)))


def linen_state(seed):
    model, x = MLP(), jnp.ones((3, 5))
    params = model.init(jax.random.key(seed), x)["params"]
    state = train_state.TrainState.create(apply_fn=model.apply, params=params, tx=optax.adam(1e-2))
    grads = jax.grad(lambda p: jnp.square(jnp.asarray(model.apply({"params": p}, x))).mean())(
        params
    )
    return state.apply_gradients(grads=grads)


def test_linen_train_state(ocp, tmp_path):
    state, config = linen_state(0), {"dimensions": np.array([5, 3])}
    ckpt = {"model": state, "config": config, "data": [jnp.arange(4.0)]}
    checkpointer = ocp.PyTreeCheckpointer()
    checkpointer.save(tmp_path / "single", ckpt)
    raw = checkpointer.restore(tmp_path / "single")
    np.testing.assert_array_equal(
        raw["model"]["params"]["Dense_0"]["kernel"], state.params["Dense_0"]["kernel"]
    )
    target = {
        "model": linen_state(1),
        "config": {"dimensions": np.array([0, 0])},
        "data": [jnp.zeros(4)],
    }
    restored = checkpointer.restore(tmp_path / "single", item=target)
    assert isinstance(restored["model"], train_state.TrainState)
    assert_same(
        restored,
        {**ckpt, "model": state.replace(tx=target["model"].tx, apply_fn=target["model"].apply_fn)},
    )

    options = ocp.CheckpointManagerOptions(max_to_keep=2, create=True)
    with ocp.CheckpointManager(tmp_path / "managed", ocp.PyTreeCheckpointer(), options) as manager:
        for step in range(5):
            manager.save(step, ckpt)
        assert manager.all_steps() == [3, 4]
        latest = manager.restore(manager.latest_step(), items=target)
        assert_same(latest["model"].params, state.params)


# -- Flax's guide for nnx ------------------------------------------------------


class TwoLayers(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(3, 5, rngs=rngs)
        self.second = nnx.Linear(5, 2, rngs=rngs)

    def __call__(self, x):
        return self.second(self.first(x))


def test_nnx_split_and_merge(ocp, tmp_path):
    model, x = TwoLayers(nnx.Rngs(0)), jnp.ones((1, 3))
    _, state = nnx.split(model)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        abstract = nnx.eval_shape(lambda: TwoLayers(nnx.Rngs(0)))
        graphdef, abstract_state = nnx.split(abstract)
        mesh = Mesh(np.array(jax.devices()[:2]), ("x",))
        replicated = NamedSharding(mesh, PartitionSpec())
        placed = jax.tree.map(
            lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=replicated), abstract_state
        )
        restored = checkpointer.restore(tmp_path / "state", placed)
    assert {leaf.sharding for leaf in jax.tree.leaves(restored)} == {replicated}
    np.testing.assert_allclose(nnx.merge(graphdef, restored)(x), model(x), rtol=1e-6)

    with ocp.CheckpointManager(
        tmp_path / "managed", options=ocp.CheckpointManagerOptions(max_to_keep=2)
    ) as manager:
        for step in range(3):
            manager.save(step, args=ocp.args.StandardSave(state))
        manager.wait_until_finished()
        restored = manager.restore(2, args=ocp.args.StandardRestore(placed))
        np.testing.assert_allclose(nnx.merge(graphdef, restored)(x), model(x), rtol=1e-6)


# -- in the style of MaxText ---------------------------------------------------


def create_manager(ocp, directory, period, use_async, dataset):
    names = ("items", "iter") if dataset else ("items",)
    manager = ocp.CheckpointManager(
        directory,
        item_names=names,
        options=ocp.CheckpointManagerOptions(
            create=True,
            save_interval_steps=period,
            enable_async_checkpointing=use_async,
            preservation_policy=ocp.checkpoint_managers.LatestN(3),
        ),
    )
    return manager


def maybe_save(ocp, manager, state, position, step):
    args = ocp.args
    composite = args.Composite(
        items=args.PyTreeSave(
            item=state,
            save_args=jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=2**20), state),
            ocdbt_target_data_file_size=2**20,
        ),
        iter=args.JsonSave({"position": position}),
    )
    saved = manager.save(step, args=composite, force=manager.reached_preemption(step))
    if manager.reached_preemption(step):
        manager.wait_until_finished()
    return saved


def load_state_if_possible(ocp, manager, abstract, shardings):
    step = manager.latest_step()
    if step is None:
        return None, None

    def restore_args_of(struct, sharding):
        return ocp.ArrayRestoreArgs(
            sharding=sharding, global_shape=struct.shape, dtype=struct.dtype
        )

    restore_args = jax.tree.map(restore_args_of, abstract, shardings)
    args = ocp.args
    restored = manager.restore(
        step,
        args=args.Composite(
            items=args.PyTreeRestore(item=abstract, restore_args=restore_args),
            iter=args.JsonRestore(),
        ),
    )
    return restored["items"], restored["iter"]["position"]


@pytest.mark.parametrize("use_async", [True, False])
def test_maxtext(ocp, tmp_path, use_async, monkeypatch):
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "model"))
    sharding = NamedSharding(mesh, PartitionSpec("data", "model"))
    state = {
        "params": {"w": jax.device_put(jnp.zeros((8, 4)), sharding)},
        "step": jnp.zeros((), jnp.int32),
    }
    abstract = jax.eval_shape(lambda: state)

    @functools.partial(jax.jit, donate_argnums=0)
    def train(state):
        return {"params": {"w": state["params"]["w"] + 1}, "step": state["step"] + 1}

    preempted = []
    utils = __import__("orbax.checkpoint", fromlist=["utils"]).utils
    monkeypatch.setattr(utils, "reached_preemption", lambda step: bool(preempted))
    before = signal.signal(signal.SIGTERM, lambda *_: preempted.append(True))
    try:
        with create_manager(ocp, tmp_path / "run", 3, use_async, True) as manager:
            assert load_state_if_possible(ocp, manager, abstract, None) == (None, None)
            saved = []
            for step in range(8):
                if maybe_save(ocp, manager, state, step * 16, step):
                    saved.append(step)
                if preempted:
                    break
                state = train(state)
                if step == 6:
                    signal.raise_signal(signal.SIGTERM)
        assert saved == [0, 3, 6, 7]
    finally:
        signal.signal(signal.SIGTERM, before)
    other = NamedSharding(
        Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("data", "model")),
        PartitionSpec("model", "data"),
    )
    shardings = {
        "params": {"w": other},
        "step": jax.sharding.SingleDeviceSharding(jax.devices()[0]),
    }
    with create_manager(ocp, tmp_path / "run", 3, use_async, True) as manager:
        assert manager.all_steps() == [3, 6, 7]
        assert (manager.directory / str(7) / "items").exists()
        restored, position = load_state_if_possible(ocp, manager, abstract, shardings)
        assert position == 7 * 16
        assert restored is not None
        assert restored["params"]["w"].sharding == other
        assert int(restored["step"]) == 7
        np.testing.assert_array_equal(restored["params"]["w"], np.full((8, 4), 7))
        params = {"params": jax.tree.map(lambda _: ocp.RestoreArgs(), abstract["params"])}
        only = manager.restore(
            7,
            args=ocp.args.Composite(
                items=ocp.args.PyTreeRestore(
                    item={"params": abstract["params"]}, restore_args=params, partial_restore=True
                )
            ),
        )
        assert list(only["items"]) == ["params"]


# -- the best checkpoint -------------------------------------------------------


def test_the_best_checkpoint_of_a_run(ocp, tmp_path):
    options = ocp.CheckpointManagerOptions(
        max_to_keep=2, best_fn=lambda metrics: metrics["accuracy"], best_mode="max"
    )
    accuracies = [0.3, 0.9, 0.5, 0.8, 0.95]
    with ocp.CheckpointManager(tmp_path, options=options) as manager:
        for step, accuracy in enumerate(accuracies):
            manager.save(
                step,
                args=ocp.args.StandardSave({"w": np.full(3, step)}),
                metrics={"accuracy": accuracy},
            )
        manager.wait_until_finished()
        assert manager.best_step() == 4
        assert manager.all_steps() == [1, 4]
        best = manager.restore(manager.best_step(), args=ocp.args.StandardRestore())
        np.testing.assert_array_equal(best["w"], [4, 4, 4])


def test_a_run_goes_on_after_it_was_ended(ocp, tmp_path):
    def run(until):
        options = ocp.CheckpointManagerOptions(save_interval_steps=2, max_to_keep=1)
        with ocp.CheckpointManager(tmp_path, options=options) as manager:
            state, first = {"w": jnp.zeros(2)}, 0
            if manager.latest_step() is not None:
                first = manager.latest_step() + 1
                state = manager.restore(first - 1, args=ocp.args.StandardRestore(state))
            for step in range(first, until):
                state = {"w": state["w"] + 1}
                manager.save(step, args=ocp.args.StandardSave(state))
            return first, float(state["w"][0])

    assert run(4) == (0, 4.0)
    assert run(9) == (3, 9.0)
    assert run(9) == (9, 9.0)

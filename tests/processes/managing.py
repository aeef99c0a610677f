"""What `worker.py` can do with checkpoint managers, one per process and directory."""

import signal
import threading
import unittest.mock
from typing import Any

import jax
import numpy as np
import worker
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import DTypeLike
from worker import PATIENCE

import vcjax
import vcjax.orbax as ocp
from vcjax.orbax import checkpoint_managers as policies

managers = {}

SHARDED = {"w": ("x",), "v": (None, "x"), "b": ()}
SHAPES = {"w": (512, 256), "v": (64, 600), "b": (40,)}


def content(step):
    rng = np.random.default_rng(step)
    params = {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    return {"params": params, "table": rng.normal(size=3000), "step": step}


def places(shape):
    mesh = worker.mesh(shape)
    return {name: NamedSharding(mesh, PartitionSpec(*axes)) for name, axes in SHARDED.items()}


def state(shape, step):
    made = content(step)
    for name, sharding in places(shape).items():
        made["params"][name] = worker.spread(made["params"][name], sharding)
    return made


def abstract(shape, dtype: DTypeLike = np.float32):
    like = content(0)
    for name, sharding in places(shape).items():
        like["params"][name] = jax.ShapeDtypeStruct(SHAPES[name], dtype, sharding=sharding)
    return like


class EachItsOwn(ocp.CheckpointHandler):
    """Like Grain's: every process writes a file of its own, and reads it again."""

    def save(self, directory, args):
        (directory / f"process_{jax.process_index()}").write_text(args.item)

    def restore(self, directory, args=None):
        return (directory / f"process_{jax.process_index()}").read_text()

    def finalize(self, directory):
        (directory / "done").write_text(",".join(sorted(p.name for p in directory.iterdir())))


@ocp.args.register_with_handler(EachItsOwn, for_save=True)
class EachItsOwnSave(ocp.args.CheckpointArgs):
    def __init__(self, item):
        self.item = item


@ocp.args.register_with_handler(EachItsOwn, for_restore=True)
class EachItsOwnRestore(ocp.args.CheckpointArgs):
    pass


class OnMyOwn(policies.SaveDecisionPolicy):
    """Says something else on each process."""

    def should_save(self, step, previous_steps, *, context):
        return (step.step + jax.process_index()) % 2 == 0


# What tests call -----------------------------------------------------------------


def manage(
    url, best=None, own_policy=False, local=False, timeout=PATIENCE, metadata=None, **options
):
    if best:
        options |= {"best_fn": lambda metrics: metrics[best], "best_mode": "min"}
    if own_policy:
        options["save_decision_policy"] = OnMyOwn()
    if local:
        url = f"{url}/{jax.process_index()}"
        processes = ocp.options.MultiprocessingOptions(primary_host=None)
        options["multiprocessing_options"] = processes
    made = ocp.CheckpointManagerOptions(process_timeout_s=timeout, **options)
    if metadata is not None:
        metadata = {"of": f"{metadata} {jax.process_index()}"}
    managers[url] = ocp.CheckpointManager(url, options=made, metadata=metadata)
    return known(url)


def run_metadata(url):
    return managers[url].metadata().custom_metadata


def known(url, local=False):
    manager = managers[f"{url}/{jax.process_index()}" if local else url]
    metrics = {str(step): manager.metrics(step) for step in manager.all_steps()}
    found = [manager.all_steps(), manager.latest_step(), manager.best_step(), metrics]
    return [*found, sorted(manager._keeper.dropped)]


def items(shape, step):
    me = jax.process_index()
    return {
        "state": ocp.args.PyTreeSave(state(shape, step)),
        "config": ocp.args.JsonSave({"process": me, f"only_{me}": [1, 2]}),
        "noise": ocp.args.NumpyRandomKeySave(np.random.RandomState(me).get_state()),
        "data": EachItsOwnSave(f"position {step} of {me}"),
    }


def train(url, shape, steps, losses, **options):
    """The end of a training step, as MaxText has it: `save` says itself whether it does."""
    manager = managers[url]
    saved = []
    for step in steps:
        loss = losses[step] + jax.process_index()
        args = ocp.args.Composite(**items(shape, step))
        saved.append(manager.save(step, args=args, metrics={"loss": loss}, **options))
    manager.wait_until_finished()
    return [saved, *known(url)]


def plain(url, step, local=False, **options):
    """Saves a tree of NumPy arrays."""
    key = f"{url}/{jax.process_index()}" if local else url
    tree = {"w": np.full(20_000, step), "mine": jax.process_index() if local else 0}
    saved = managers[key].save(step, tree, **options)
    managers[key].wait_until_finished()
    return saved


def restored(url, shape, step=None, how="pytree", dtype="float32"):
    """Which leaves are wrong, whether arrays are where they should be, other items."""
    manager, like = managers[url], abstract(shape, np.dtype(dtype))
    if how == "pytree":
        restore_args = jax.tree.map(
            lambda leaf: (
                ocp.ArrayRestoreArgs(sharding=leaf.sharding, dtype=leaf.dtype)
                if isinstance(leaf, jax.ShapeDtypeStruct)
                else ocp.RestoreArgs()
            ),
            like,
        )
        args = ocp.args.PyTreeRestore(item=like, restore_args=restore_args)
    else:
        args = ocp.args.StandardRestore(like)
    found = manager.restore(step, args=ocp.args.Composite(state=args))["state"]
    expected = content(manager.latest_step() if step is None else step)
    wrong = []
    for name, array in found["params"].items():
        full = expected["params"][name].astype(dtype)
        wrong += [
            name
            for shard in array.addressable_shards
            if np.asarray(shard.data).tobytes() != full[shard.index].tobytes()
        ]
    placed = all(found["params"][name].sharding == place for name, place in places(shape).items())
    same = found["step"] == expected["step"] and (found["table"] == expected["table"]).all()
    return {"wrong": wrong, "placed": placed, "rest": bool(same)}


def others(url, step):
    """The items that are not spread over processes."""
    args = ocp.args.Composite(
        config=ocp.args.JsonRestore(),
        noise=ocp.args.NumpyRandomKeyRestore(),
        data=EachItsOwnRestore(),
    )
    found = managers[url].restore(step, args=args)
    return [found["config"], int(found["noise"][1][0]), found["data"]]


def described(url, step):
    """Shape and sharding of `w`, as `item_metadata` says."""
    found = managers[url].item_metadata(step)["state"]["params"]["w"]
    sharding = found.sharding.to_jax_sharding()
    return [list(found.shape), len(sharding.device_set), list(sharding.spec)]


def reload(url):
    managers[url].reload()
    return known(url)


def delete(url, step):
    managers[url].delete(step)
    return known(url)


def wrong_args(url, process, step=100, force=True):
    """One process gives arguments of the wrong kind."""
    mine = jax.process_index() == process
    item = ocp.args.StandardSave({"a": 1})
    args = item if mine else ocp.args.Composite(state=item)
    return managers[url].save(step, args=args, force=force)


def wrong_item(url, process):
    """One process has what cannot be saved; nobody finds that before all have begun."""
    item: Any = {1, 2} if jax.process_index() == process else [1, 2]
    args = {
        "config": ocp.args.JsonSave(item),
        "data": EachItsOwnSave("here"),
        "state": ocp.args.StandardSave({"a": 1}),
    }
    managers[url].save(100, args=ocp.args.Composite(**args), force=True)


def other_steps(url):
    item = ocp.args.StandardSave({"a": 1})
    step = 100 + jax.process_index()
    managers[url].save(step, args=ocp.args.Composite(state=item), force=True)


def no_loss(url):
    """`best_fn` fails."""
    args = ocp.args.Composite(state=ocp.args.StandardSave({"a": 1}))
    managers[url].save(100, args=args, metrics={"other": 1}, force=True)


held = threading.Event()


def many_refused(url, shape, steps):
    """Steps that a policy refuses while one is being saved, until `go_on` is called."""
    manager = managers[url]
    if jax.process_index() == 0:
        held.clear()
        real = vcjax.history.History.write

        def when_told(*arguments):
            assert held.wait(PATIENCE)
            patch.stop()
            return real(*arguments)

        patch = unittest.mock.patch.object(vcjax.history.History, "write", when_told)
        patch.start()
    answers = [manager.save(0, args=ocp.args.Composite(**items(shape, 0)))]
    small = ocp.args.Composite(config=ocp.args.JsonSave({}))
    answers += [manager.save(step, args=small) for step in steps]
    return [answers, manager.is_saving_in_progress()]


def go_on(url):
    held.set()
    managers[url].wait_until_finished()
    return managers[url].all_steps()


def kill_manager(url, shape, victim, step, where="write"):
    """Saves in the background; the victim is killed in the middle of that."""
    manager = managers[url]
    if jax.process_index() == victim:
        worker._kill_at(where)
    try:
        manager.save(step, args=ocp.args.Composite(**items(shape, step)))
        manager.wait_until_finished()
    except vcjax.VcjaxError as error:
        found = {"kind": type(error).__name__, "message": error.message, "hint": error.hint}
        return {**found, "steps": manager.all_steps()}
    return "saved"


def hit_by_a_full_disk(url, shape, process, step):
    """On one process no file can grow while it saves in the background; then it is tried again."""
    import resource

    manager, limits = managers[url], resource.getrlimit(resource.RLIMIT_FSIZE)
    if jax.process_index() == process:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    args = ocp.args.Composite(state=ocp.args.PyTreeSave(state(shape, step)))
    try:
        manager.save(step, args=args)
        manager.wait_until_finished()
    except vcjax.VcjaxError as error:
        first = [type(error).__name__, manager.all_steps()]
    else:
        first = None
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    again = manager.save(step, args=args)
    manager.wait_until_finished()
    return [first, again, manager.all_steps()]


# Checkpointers ---------------------------------------------------------------------

MAKE = {
    "standard": ocp.StandardCheckpointer,
    "pytree": ocp.PyTreeCheckpointer,
    "async": lambda: ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler()),
    "composite": lambda: ocp.Checkpointer(ocp.CompositeCheckpointHandler()),
}


def checkpoint(url, shape, kind, step, force=False):
    """Saves to a path, restores onto shardings; what is wrong, and the other item."""
    made, like = MAKE[kind](), abstract(shape)
    args = {"standard": ocp.args.StandardRestore(like)}
    if kind == "composite":
        mine = ocp.args.Composite(**{name: items(shape, step)[name] for name in ("state", "data")})
    elif kind == "standard":
        mine = ocp.args.StandardSave(state(shape, step))
    else:
        mine = ocp.args.PyTreeSave(state(shape, step))
    made.save(url, args=mine, force=force)
    if kind in ("standard", "async"):
        made.wait_until_finished()
    if kind == "composite":
        target = ocp.args.Composite(state=args["standard"], data=EachItsOwnRestore())
        whole = made.restore(url, args=target)
        found, data = whole["state"], whole["data"]
    else:
        found, data = made.restore(url, args=args["standard"]), None
    expected, wrong = content(step), []
    for name, place in places(shape).items():
        array = found["params"][name]
        same = all(
            np.asarray(shard.data).tobytes() == expected["params"][name][shard.index].tobytes()
            for shard in array.addressable_shards
        )
        if not same or array.sharding != place:
            wrong.append(name)
    made.close()
    return [wrong, found["step"], data]


def checkpoint_wrong_json(url, process):
    """One process has what is no JSON."""
    item: Any = {1, 2} if jax.process_index() == process else [1, 2]
    with ocp.AsyncCheckpointer(ocp.JsonCheckpointHandler()) as made:
        made.save(url, args=ocp.args.JsonSave(item), force=True)
        made.wait_until_finished()

"""Orbax's directories as commits, and commits as Orbax's checkpoints; by real Orbax, both ways."""

import collections
import json
import mmap
import shutil
import subprocess
import sys
import time
import weakref
from pathlib import Path

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import orbax.checkpoint.experimental.v1 as ocp_v1
import pytest
from absl import logging
from etils import epath
from google.protobuf import struct_pb2
from orbax.checkpoint._src.metadata.pytree_metadata_options import PyTreeMetadataOptions

import vcjax
import vcjax.orbax
from vcjax.cli import main
from vcjax.errors import FormatError, StepExistsError, TreeError
from vcjax.orbax.export_writing import run_export
from vcjax.orbax.exporting import plan_export
from vcjax.orbax.importing import plan_import, run_import
from vcjax.orbax.saved_steps import read_directory
from vcjax.tree import LazyArray

pytestmark = [  # about Orbax's own calls
    pytest.mark.filterwarnings("ignore:Sharding info not provided:UserWarning"),
    pytest.mark.filterwarnings("ignore:Use `:DeprecationWarning"),
]

ROOT = Path(__file__).resolve().parent.parent
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


LAYOUTS = {
    "ocdbt": {},
    "a folder per leaf": {"use_ocdbt": False},
    "zarr3": {"use_zarr3": True},
    "zarr3, a folder per leaf": {"use_ocdbt": False, "use_zarr3": True},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_holds_what_orbax_restores_from_it(layout, repo, tmp_path):
    handler = ocp.PyTreeCheckpointHandler(**LAYOUTS[layout])
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(tmp_path / "saved", args=ocp.args.PyTreeSave({**tree(), "text": "yes"}))
        theirs = checkpointer.restore(tmp_path / "saved")
    [commit] = import_all(repo, tmp_path / "saved")
    assert commit.message == "import saved"
    ours = repo.restore()
    # Orbax makes a Python number of NumPy's; we know its dtype.
    assert type(ours["scalars"]["numpy"]) is np.float32
    assert_same(ours, theirs)
    assert repo.fsck().ok


def test_the_files_of_the_v1_api(repo, tmp_path):
    given = tree()
    del given["scalars"]["numpy"]  # the v1 API refuses NumPy's scalars
    ocp_v1.save_pytree(tmp_path / "one", given, custom_metadata={"lr": 0.1})
    with ocp_v1.training.Checkpointer(tmp_path / "many") as checkpointer:
        checkpointer.save_pytree(3, given, metrics={"loss": 0.5})
        checkpointer.save_checkpointables(4, {"a": {"w": jnp.ones(2)}, "b": {"n": 1}})
    [commit] = import_all(repo, tmp_path / "one")
    assert commit.metadata["orbax"]["custom_metadata"] == {"lr": 0.1}
    theirs = ocp_v1.load_pytree(tmp_path / "one")
    assert_same(repo.restore(), theirs)
    import_all(repo, tmp_path / "many")
    assert_same(repo.restore("step:3"), theirs)
    assert repo.resolve("best:loss").step == 3
    assert_same(repo.restore("step:4"), {"a": {"w": jnp.ones(2)}, "b": {"n": 1}})
    repo.commit({"only": jnp.ones(3)})
    export(repo, "HEAD", tmp_path / "back")
    assert_same(ocp_v1.load_pytree(tmp_path / "back"), {"only": jnp.ones(3)})


def test_json_and_protos_of_the_v1_api(repo, tmp_path):
    """`data.json` and `proto.pbtxt`; back in Orbax, also of the older API."""
    proto = struct_pb2.Struct()
    proto.update({"name": "vcjax"})
    context = ocp_v1.Context()
    context.checkpointables.registry = ocp_v1.handlers.local_registry()
    context.checkpointables.registry.add(ocp_v1.handlers.JsonHandler, checkpointable_name="config")
    items = {"config": {"n": 1, "none": None}, "state": {"w": jnp.ones(2)}, "proto": proto}
    asked = dict.fromkeys(("config", "state")) | {"proto": struct_pb2.Struct}
    with context, ocp_v1.training.Checkpointer(tmp_path / "v1") as checkpointer:
        checkpointer.save_checkpointables(4, items)
    assert (tmp_path / "v1" / "4" / "config" / "data.json").exists()
    [commit] = import_all(repo, tmp_path / "v1")
    kinds = {name: item["kind"] for name, item in commit.metadata["orbax"]["items"].items()}
    assert kinds == {"config": "json", "state": "tree", "proto": "files"}
    assert repo.restore()["config"] == items["config"]

    export(repo, "step:4", tmp_path / "back", manager=True)
    ask = ocp.args.Composite(
        config=ocp.args.JsonRestore(),
        state=ocp.args.StandardRestore(),
        proto=ocp.args.ProtoRestore(struct_pb2.Struct),
    )
    with ocp.CheckpointManager(tmp_path / "back", options=options()) as manager:
        assert_same(dict(manager.restore(4, args=ask).items()), items)
    with context, ocp_v1.training.Checkpointer(tmp_path / "back") as checkpointer:
        assert_same(dict(checkpointer.load_checkpointables(4, asked)), items)
    with vcjax.CheckpointManager(repo.url) as manager:
        assert_same(dict(manager.restore(4, args=ask).items()), items)


def test_rich_types_keep_tuples_and_namedtuples(repo, tmp_path):
    rich = ocp.PyTreeCheckpointHandler(
        pytree_metadata_options=PyTreeMetadataOptions(support_rich_types=True)
    )
    given = {"pair": Pair(jnp.ones(2), (1, [2.5])), "empty": (), "none": None}
    with ocp.Checkpointer(rich) as checkpointer:
        checkpointer.save(tmp_path / "rich", args=ocp.args.PyTreeSave(given))
    import_all(repo, tmp_path / "rich")
    assert_same(repo.restore(), given)
    for manager, name in ((False, "one"), (True, "many")):
        named = repo.commit(given | {"to": name}, metadata={"step": 3})
        target = export(repo, named, tmp_path / name, manager=manager)
        assert (
            import_all(vcjax.Repository.init(tmp_path / f"of {name}"), target)[0].tree == named.tree
        )
    repo.commit({"pair": given["pair"]})
    export(repo, "HEAD", tmp_path / "plain")
    with ocp.StandardCheckpointer() as checkpointer:  # which has no rich types
        nested = {"mu": jnp.ones(2), "nu": [1, [2.5]]}
        assert_same(checkpointer.restore(tmp_path / "plain")["pair"], nested)
        target = {"pair": Pair(jax.ShapeDtypeStruct((2,), jnp.float32), (0, [0.0]))}
        assert_same(checkpointer.restore(tmp_path / "plain", target), {"pair": given["pair"]})


def test_a_tree_described_by_msgpack_as_orbax_had_it_at_first(repo, tmp_path):
    folder = tmp_path / "old"
    arrays = {"a": {"w": np.arange(6.0).reshape(2, 3)}, "b": np.ones(2, np.int32)}
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False)) as checkpointer:
        checkpointer.save(folder, args=ocp.args.PyTreeSave(arrays))
        for name in ("_METADATA", "_CHECKPOINT_METADATA", "_sharding"):
            (folder / name).unlink(missing_ok=True)
        names = {"a": {"w": "PLACEHOLDER://a.w"}, "b": "PLACEHOLDER://b", "n": 3}
        (folder / "checkpoint").write_bytes(flax.serialization.msgpack_serialize(names))
        theirs = checkpointer.restore(folder)
    import_all(repo, folder)
    ours = repo.restore()
    assert ours.pop("n") == theirs.pop("n") == 3
    assert_same(ours, theirs)


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


def test_a_manager_goes_on_where_orbax_stopped(run, tmp_path, capsys):
    repo = vcjax.Repository.init(tmp_path / "repo")
    source = read_directory(run)
    assert source.notices == (
        "4.orbax-checkpoint-tmp-17: passed over, an interrupted save left it behind",
    )
    commits = import_all(repo, run)
    assert [commit.message for commit in commits] == ["step 1", "step 2", "step 3"]
    assert [commit.step for commit in commits] == [1, 2, 3]
    first = commits[0]
    assert first.metrics == {"loss": 1.0, "by/task": 2.0}
    noted = json.loads((run / "1" / "_CHECKPOINT_METADATA").read_text())
    assert first.metadata["imported"] == {
        "format": "orbax",
        "source": str(run / "1"),
        "started": noted["init_timestamp_nsecs"],
        "finished": noted["commit_timestamp_nsecs"],
    }
    fields = first.metadata["orbax"]
    assert fields["metrics"] == {"loss": 1.0, "by": {"task": 2.0}, "note": "x"}
    assert fields["custom_metadata"] == {"lr": 0.1}
    assert fields["root_metadata"] == {"model": "tiny"}

    with vcjax.CheckpointManager(repo.url) as manager:
        assert manager.all_steps() == [1, 2, 3]
        with ocp.CheckpointManager(run, options=options()) as theirs:
            for step in (1, 2, 3):
                expected = theirs.restore(step, args=ocp.args.StandardRestore())
                assert_same(manager.restore(step), expected)
        manager.save(4, {"same": np.zeros(3)})
    assert repo.resolve("step:4").parents == (commits[-1].digest,)
    assert main(["log", f"--repo={repo.url}", "--metrics=loss", "--oneline"]) == 0
    assert "0.33333 " in capsys.readouterr().out


def test_equal_leaves_are_stored_once(run, repo):
    import_all(repo, run)
    objects = {key for key in repo.store.keys("leaves/") if key.endswith("zarr.json")}
    # "new" of step 1 is "same", and that of step 3 is that of step 2.
    assert len(objects) == 2


def test_an_interrupted_import_is_repeated(run, repo, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    steps = run_import(repo, plan_import(repo, read_directory(run)))
    next(steps)
    steps.close()
    plan = plan_import(repo, read_directory(moved))  # known by when it was saved
    assert [step.step for step in plan.skipped] == [1]
    assert [step.step for step in plan.steps] == [2, 3]
    assert [commit.step for commit in import_all(repo, moved)] == [2, 3]
    assert import_all(repo, run) == []


def test_steps_of_other_origin_are_not_mixed_in(run, repo):
    repo.commit({"w": 1}, metadata={"step": 2})
    with pytest.raises(StepExistsError, match="the numbers 2"):
        plan_import(repo, read_directory(run))
    assert [commit.step for commit in repo.log()] == [2]


def test_names_of_steps(repo, tmp_path):
    folder = tmp_path / "named"
    fixed = options(step_prefix="ckpt", step_format_fixed_length=6)
    with ocp.CheckpointManager(folder, options=fixed) as manager:
        manager.save(7, args=ocp.args.StandardSave({"w": np.ones(2)}))
    with ocp.CheckpointManager(folder, options=options(step_prefix="ema")) as manager:
        manager.save(7, args=ocp.args.StandardSave({"w": np.zeros(2)}))
    with pytest.raises(FormatError, match="'ckpt_000007' and 'ema_7' are both step 7"):
        read_directory(folder)
    [commit] = import_all(repo, folder, prefix="ckpt")
    assert (commit.step, repo.restore()["w"].tolist()) == (7, [1, 1])


class Words(ocp.CheckpointHandler):
    """A handler of somebody's own: words in files."""

    def save(self, directory, args):
        (directory / "words.txt").write_text(" ".join(args.item))
        (directory / "more").mkdir()
        (directory / "more" / "none").write_bytes(b"")

    def restore(self, directory, args=None):
        assert (directory / "more" / "none").exists()
        return (directory / "words.txt").read_text().split()


@ocp.args.register_with_handler(Words, for_save=True)
class WordsSave(ocp.args.CheckpointArgs):
    def __init__(self, item):
        self.item = item


@ocp.args.register_with_handler(Words, for_restore=True)
class WordsRestore(ocp.args.CheckpointArgs):
    pass


def test_items_of_all_kinds_there_and_back(repo, tmp_path):
    args = ocp.args
    with ocp.CheckpointManager(tmp_path / "saved", options=options()) as manager:
        manager.save(
            5,
            args=args.Composite(
                state=args.PyTreeSave(tree(), custom_metadata={"v": 2}),
                config=args.JsonSave({"layers": [1, 2], "name": "x", "none": None}),
                array=args.ArraySave(jnp.arange(5)),
                key=args.JaxRandomKeySave(jax.random.key(9)),
                numpy_key=args.NumpyRandomKeySave(np.random.RandomState(1).get_state()),
                words=WordsSave(["to", "be"]),
            ),
            metrics=None,
        )
    source = read_directory(tmp_path / "saved")
    plan = plan_import(repo, source)
    assert plan.notices == ("5: item 'words', which Words wrote, is kept as its files",)
    [(_, commit)] = run_import(repo, plan)
    kinds = {name: item["kind"] for name, item in commit.metadata["orbax"]["items"].items()}
    assert kinds == dict.fromkeys(("state", "array", "key", "numpy_key"), "tree") | {
        "config": "json",
        "words": "files",
    }
    restored = repo.restore()
    assert restored["config"] == {"layers": [1, 2], "name": "x", "none": None}
    assert restored["words"]["words.txt"].tobytes() == b"to be"
    assert restored["words"]["more"]["none"].size == 0

    export(repo, "step:5", tmp_path / "back", manager=True)
    names = ("state", "config", "array", "key", "numpy_key", "words")
    ask = args.Composite(
        state=args.PyTreeRestore(),
        config=args.JsonRestore(),
        array=args.ArrayRestore(),
        key=args.JaxRandomKeyRestore(),
        numpy_key=args.NumpyRandomKeyRestore(),
        words=WordsRestore(),
    )
    found = {}
    for folder in ("saved", "back"):
        with ocp.CheckpointManager(tmp_path / folder, options=options()) as manager:
            found[folder] = manager.restore(5, args=ask)
            assert manager.item_metadata(5).state.custom_metadata == {"v": 2}
    for name in names:
        assert_same(found["back"][name], found["saved"][name])
    assert found["back"]["words"] == ["to", "be"]
    again = vcjax.Repository.init(tmp_path / "again")
    [other] = import_all(again, tmp_path / "back")
    assert other.tree == commit.tree
    assert other.metadata["orbax"] == commit.metadata["orbax"]


def test_shardings_over_several_devices_are_noted(repo, tmp_path):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("x",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    put = jax.device_put(np.arange(8.0, dtype=np.float32), sharding)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "saved", {"a": jnp.ones(1), "b": put, "c": put + 1})
    [commit] = import_all(repo, tmp_path / "saved")
    [(text, ranges)] = commit.metadata["orbax"]["item"]["shardings"]
    assert json.loads(text)["partition_spec"] == ["x"]
    assert ranges == [[1, 3]]
    np.testing.assert_array_equal(repo.restore()["b"], np.arange(8.0))


def test_damage_is_named_and_what_is_whole_stays(run, repo, tmp_path):
    folder = tmp_path / "damaged"
    shutil.copytree(run, folder)
    [blob, *_] = sorted((folder / "2").rglob("d/*"), key=lambda path: -path.stat().st_size)
    blob.write_bytes(blob.read_bytes()[:100])
    with pytest.raises(FormatError, match=r"2: leaf 'new' in .* cannot be read") as raised:
        import_all(repo, folder)
    assert raised.value.path == "new"
    assert [commit.step for commit in repo.log()] == [1]
    shutil.rmtree(folder / "2")
    assert [commit.step for commit in import_all(repo, folder)] == [3]


@pytest.mark.parametrize("missing", ["nowhere", "nothing"])
def test_what_is_not_orbaxs(missing, tmp_path):
    (tmp_path / "nothing").mkdir()
    with pytest.raises(FormatError, match=r"no folder|saved nothing"):
        read_directory(tmp_path / missing)


# -- memory ------------------------------------------------------------------------


def test_a_commit_holds_no_more_than_two_lazy_leaves(repo):
    """Counted, not measured: which arrays are still there when the next one is read."""
    size, held = 3_000_000, []

    def lazy(number):
        def read():
            deadline = time.monotonic() + 5
            while len(buffers) > 1 and time.monotonic() < deadline:
                time.sleep(0.01)  # TensorStore's threads let go a little after they are done
            held.append(len(buffers))
            memory = mmap.mmap(-1, 4 * size)  # which dies with the last array that views it
            array = np.frombuffer(memory, np.float32)
            array[:] = number
            buffers.add(memory)
            return array

        return LazyArray((size,), np.dtype(np.float32), read)

    buffers = weakref.WeakSet()
    repo.commit({f"{i}": lazy(i) for i in range(6)})
    assert len(held) == 6
    assert max(held) <= 1  # besides the one that is read
    assert float(repo.restore(paths="4")["4"][-1]) == 4


def test_lazy_leaves_are_leaves_like_any_other(repo):
    values = {"inline": np.ones(3), "packed": np.arange(500), "object": np.ones((300, 300))}
    key = jax.random.key(4)
    lazy = {name: LazyArray(v.shape, v.dtype, lambda v=v: v) for name, v in values.items()}
    first = repo.commit({**lazy, "key": key, "n": 3})
    assert repo.commit({**values, "key": key, "n": 3}).tree == first.tree
    assert repo.commit_async(lazy).result().leaves == 3
    np.testing.assert_array_equal(repo.restore()["packed"], np.arange(500))
    assert {change.status for change in vcjax.diff(lazy, values).changes} == {"unchanged"}
    liar = LazyArray((4,), np.dtype("float32"), lambda: np.ones(3, np.float32))
    with pytest.raises(TreeError, match=r"leaf 'a/liar': float32\[3\] was read") as raised:
        repo.commit({"a": {"liar": liar}})
    assert raised.value.path == "a/liar"


MEMORY = """
import sys
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from vcjax.cli import main

def growth(folder, repo):
    before = getrusage(RUSAGE_SELF).ru_maxrss
    assert main(["import", "orbax", folder, "--repo=" + repo]) == 0
    return (getrusage(RUSAGE_SELF).ru_maxrss - before) * 1024

growth(sys.argv[1] + "/warm", sys.argv[2] + "/warm")
print("grew", growth(sys.argv[1] + "/large", sys.argv[2] + "/large"))
"""


def test_an_import_takes_two_leaves_and_chunk_buffers(tmp_path):
    leaf = 8 * 2**20
    make = np.random.default_rng(0)
    large = {f"{i:02}": make.integers(0, 255, leaf, np.uint8).reshape(8, -1) for i in range(16)}
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "warm", {"w": np.ones(2**18)})
        checkpointer.save(tmp_path / "large", large)
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path), str(tmp_path / "repos")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    grew = int(done.stdout.split("grew")[1])
    # Orbax has stored each leaf as one chunk, which TensorStore holds encoded and decoded;
    # of ours, of 4 MiB each, a leaf's worth may be on their way. The tree has 16 leaves.
    assert grew < (2 + 3) * leaf
    repo = vcjax.Repository.open(tmp_path / "repos" / "large")
    np.testing.assert_array_equal(repo.restore(paths="07")["07"], large["07"])


# -- export ------------------------------------------------------------------------


def export(repo, revision, target, **more):
    plan = plan_export(repo, revision, target, **more)
    run_export(repo, plan)
    return plan.target


def test_orbax_restores_an_exported_tree(repo, tmp_path):
    repo.commit({**tree(), "text": "yes", "complex": np.ones(2, np.complex64)})
    export(repo, "HEAD", tmp_path / "out")
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "theirs", {**tree(), "text": "yes"})
        expected = checkpointer.restore(tmp_path / "theirs")
        found = checkpointer.restore(tmp_path / "out")
    assert found.pop("complex").dtype == np.complex64
    assert found["scalars"].pop("numpy").dtype == np.float32  # a 0-d array keeps its dtype
    del expected["scalars"]["numpy"]
    assert_same(found, expected)
    target = {"params": {"w": jax.ShapeDtypeStruct((3, 4), jnp.bfloat16)}}
    repo.commit({"params": tree()["params"] | {}}, metadata={"step": 1})
    export(repo, "HEAD", tmp_path / "small")
    with ocp.StandardCheckpointer() as standard:
        target["params"]["b.c"] = jax.ShapeDtypeStruct((3,), jnp.float32)
        cast = standard.restore(tmp_path / "small", target)
    assert cast["params"]["w"].dtype == jnp.bfloat16


@pytest.mark.parametrize("kind", ["json", "proto"])
def test_a_single_item_that_is_no_tree_there_and_back(tmp_path, kind):
    """By our manager's repository to Orbax, as a checkpoint and as a step, and in again."""
    proto = struct_pb2.Struct()
    proto.update({"name": "vcjax"})
    if kind == "json":
        given, handler = {"layers": [1, None]}, ocp.JsonCheckpointHandler
        save, ask = ocp.args.JsonSave(given), ocp.args.JsonRestore()
    else:
        given, handler = proto, ocp.ProtoCheckpointHandler
        save, ask = ocp.args.ProtoSave(given), ocp.args.ProtoRestore(struct_pb2.Struct)
    with vcjax.CheckpointManager(tmp_path / "ours") as manager:
        manager.save(7, args=save)
        manager.wait_until_finished()
        export(manager.repo, "step:7", tmp_path / "one")
        export(manager.repo, "step:7", tmp_path / "many", manager=True)
        tree = manager.repo.resolve("HEAD").tree
    with ocp.Checkpointer(handler("proto.pbtxt") if kind == "proto" else handler()) as checkpointer:
        assert checkpointer.restore(tmp_path / "one", args=ask) == given
    with ocp.CheckpointManager(tmp_path / "many", options=options()) as manager:
        assert manager.restore(7, args=ask) == given
    for name in ("one", "many"):
        again = vcjax.Repository.init(tmp_path / f"of {name}")
        [commit] = import_all(again, tmp_path / name)
        assert commit.tree == tree
        with vcjax.orbax.CheckpointManager(again.url) as manager:
            if name == "many":
                assert manager.restore(7, args=ask) == given


def test_a_step_is_exported_with_what_belongs_to_it(run, repo, tmp_path):
    import_all(repo, run)
    for revision in ("step:1", "step:2"):
        export(repo, revision, tmp_path / "out", manager=True)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["1", "2", "metadata"]
    best = options(best_fn=lambda metrics: -metrics["loss"])
    with ocp.CheckpointManager(tmp_path / "out", options=best) as manager:
        assert manager.all_steps() == [1, 2]
        assert manager.best_step() == 2
        assert manager.metrics(1) == {"loss": 1.0, "by": {"task": 2.0}, "note": "x"}
        assert manager.metadata(1).custom_metadata == {"lr": 0.1}
        assert manager.metadata().custom_metadata == {"model": "tiny"}
        assert_same(manager.restore(2, args=ocp.args.StandardRestore()), repo.restore("step:2"))
        manager.save(3, args=ocp.args.StandardSave({"w": np.ones(1)}), metrics={"loss": 0.1})


def test_what_orbax_cannot_hold_is_named_before_anything_is_written(repo, tmp_path):
    repo.commit(
        {
            "a": {"b": np.ones(1), "fine": np.ones(2)},
            "a.b": np.zeros(1),
            "bytes": b"x",
            "complex": 1j,
            "empty": np.zeros((0, 3)),
            "huge": 2**70,
            "odd": jnp.ones(2, jnp.uint4),
            "te~xt": "x",
        }
    )
    with pytest.raises(FormatError) as raised:
        export(repo, "HEAD", tmp_path / "out")
    lines = raised.value.message.splitlines()[1:]
    assert [line.split(":")[0].strip() for line in lines] == [
        "a.b",
        "bytes",
        "complex",
        "empty",
        "huge",
        "odd",
        "te~xt",
    ]
    assert not (tmp_path / "out").exists()
    repo.commit({"none": {}}, branch="other")
    repo.commit({})
    with pytest.raises(FormatError, match="it is empty"):
        plan_export(repo, "HEAD", tmp_path / "out")


def test_only_a_checkpoint_is_replaced_and_only_by_a_whole_one(repo, tmp_path):
    large = np.arange(100_000, dtype=np.float32)
    repo.commit({"w": np.ones(2)}, "one", metadata={"step": 1})
    repo.commit({"w": large}, "two", metadata={"step": 2})
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    with pytest.raises(FormatError, match="not a checkpoint"):
        plan_export(repo, "HEAD", tmp_path / "photos", force=True)
    out = export(repo, "step:1", tmp_path / "out")
    with pytest.raises(StepExistsError):
        plan_export(repo, "step:2", out)
    with pytest.raises(FormatError, match="not the directory of a manager"):
        plan_export(repo, "step:2", out, manager=True)
    plan = plan_export(repo, "step:2", out, force=True)
    [leaf] = Path(repo.url, "leaves").rglob("c/0")
    kept = leaf.read_bytes()
    leaf.write_bytes(kept[:-1] + b"?")
    with pytest.raises(vcjax.CorruptionError):
        run_export(repo, plan)
    with ocp.PyTreeCheckpointer() as checkpointer:
        assert checkpointer.restore(out)["w"].tolist() == [1, 1]
        leaf.write_bytes(kept)
        run_export(repo, plan)
        np.testing.assert_array_equal(checkpointer.restore(out)["w"], large)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".vcjax")] == []


def test_the_command_and_the_script(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VCJAX_REPO", raising=False)
    assert main(["import", "orbax", str(run)]) == 1  # no repository here, and none is named
    assert main(["import", "orbax", str(run), "--repo=made", "--dry-run"]) == 0
    assert not Path("made").exists()
    assert main(["import", "orbax", str(run), "--repo=made"]) == 0
    told = capsys.readouterr()
    assert "4.orbax-checkpoint-tmp-17: passed over" in told.err
    assert told.out.endswith("Imported 3 of 3 checkpoints\n")
    assert main(["import", "orbax", str(run), "--repo=made", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["skipped"]) == 3
    assert main(["export", "orbax", "step:2", "out", "--repo=made", "--manager"]) == 0
    assert main(["export", "torch", "step:2", "out", "--repo=made"]) == 2
    script = [sys.executable, str(ROOT / "scripts/convert.py"), "--repo=converted"]
    env = {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "PATH": "/usr/bin"}
    for words in (["--source=out"], ["--target=one", "--revision=step:2"]):
        done = subprocess.run([*script, *words], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    with ocp.PyTreeCheckpointer() as checkpointer:
        assert checkpointer.restore(epath.Path(tmp_path / "one"))["step"] == 2

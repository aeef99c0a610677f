"""Commits as checkpoints that Orbax restores, and in again."""

import collections
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import orbax.checkpoint.experimental.v1 as ocp_v1
import pytest
from etils import epath
from google.protobuf import struct_pb2

import vcjax
import vcjax.orbax
from vcjax.cli import main
from vcjax.errors import FormatError, StepExistsError
from vcjax.orbax.files.export import run_export
from vcjax.orbax.files.export_plan import plan_export
from vcjax.orbax.files.import_ import plan_import, run_import
from vcjax.orbax.files.steps import read_directory
from vcjax.orbax.orbax_internals import rich_types

pytestmark = [  # about Orbax's own calls
    pytest.mark.filterwarnings("ignore:Sharding info not provided:UserWarning"),
    pytest.mark.filterwarnings("ignore:Use `:DeprecationWarning"),
]

ROOT = Path(__file__).resolve().parents[3]
Pair = collections.namedtuple("Pair", "mu nu")


def test_json_and_protos_of_the_v1_api(repo, tmp_path, options, import_all, assert_same, export):
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


def test_rich_types_keep_tuples_and_namedtuples(repo, tmp_path, import_all, assert_same, export):
    rich = ocp.PyTreeCheckpointHandler(pytree_metadata_options=rich_types())
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


def test_items_of_all_kinds_there_and_back(
    repo, tmp_path, tree, options, import_all, assert_same, export
):
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


def test_orbax_restores_an_exported_tree(repo, tmp_path, tree, assert_same, export):
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
def test_a_single_item_that_is_no_tree_there_and_back(tmp_path, kind, options, import_all, export):
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


def test_a_step_is_exported_with_what_belongs_to_it(
    run, repo, tmp_path, options, import_all, assert_same, export
):
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


def test_what_orbax_cannot_hold_is_named_before_anything_is_written(repo, tmp_path, export):
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


def test_only_a_checkpoint_is_replaced_and_only_by_a_whole_one(repo, tmp_path, export):
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


def test_the_command_and_the_script(run, tmp_path, monkeypatch, capsys, processes):
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
    for words in (["--source=out"], ["--target=one", "--revision=step:2"]):
        script = (ROOT / "scripts/convert.py", "--repo=converted", *words)
        processes.start(sys.executable, *script).finish()
    with ocp.PyTreeCheckpointer() as checkpointer:
        assert checkpointer.restore(epath.Path(tmp_path / "one"))["step"] == 2

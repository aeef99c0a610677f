"""Items of all kinds, saved and restored by Orbax and by ours alike."""

import asyncio
import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint
import pytest
from google.protobuf import struct_pb2

from vcjax.errors import VcjaxError
from vcjax.orbax.orbax_internals import STANDARD

pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided")  # of Orbax

TREE = {"w": np.arange(4.0), "b": jnp.ones(2)}


def manager(ocp, folder, **keywords):
    options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False)
    return ocp.CheckpointManager(folder, options=options, **keywords)


def assert_same(tree, expected):
    assert jax.tree.structure(tree) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, tree, expected)


def test_composite(ocp, tmp_path):
    args = ocp.args
    note = {"lr": 0.1, "names": ["a", None, True], "deep": {"x": {}}}
    with manager(ocp, tmp_path, item_names=("state", "note", "extra")) as made:
        assert made.save(
            0, args=args.Composite(state=args.StandardSave(TREE), note=args.JsonSave(note))
        )
        both = made.restore(
            0, args=args.Composite(state=args.StandardRestore(TREE), note=args.JsonRestore())
        )
        assert isinstance(both, args.Composite)
        assert sorted(both.keys()) == ["note", "state"]
        assert_same(both.state, TREE)
        assert both["note"] == note
        one = made.restore(0, args=args.Composite(note=args.JsonRestore()))
        assert dict(one.items()) == {"note": note}
        assert made.restore(0, args=args.Composite(state=None)).state["w"].shape == (4,)
        everything = made.restore(0)
        assert_same(everything.state, TREE)
        assert everything.note == note
        with pytest.raises(KeyError, match="extra"):
            made.restore(0, args=args.Composite(extra=args.JsonRestore()))
        with pytest.raises(ValueError, match="Composite"):
            made.save(1, args=args.StandardSave(TREE))
        with pytest.raises(ValueError, match="other"):
            made.save(1, args=args.Composite(other=args.JsonSave(note)))
        assert (made.directory / "0" / "state").is_dir()
        assert (made.directory / "0" / "note").is_dir()


def test_a_composite_without_items(ocp, tmp_path):
    options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False)
    with ocp.CheckpointManager(tmp_path, options=options, item_names=("a", "b")) as manager:
        with pytest.raises(ValueError, match="save"):
            manager.save(0, args=ocp.args.Composite())
        assert manager.all_steps() == []


def test_a_composite_without_item_names(ocp, tmp_path):
    args = ocp.args
    with manager(ocp, tmp_path) as made:
        made.save(3, args=args.Composite(default=args.StandardSave(TREE), n=args.JsonSave([1])))
        metadata = made.item_metadata(3)
        assert metadata.default["w"].shape == (4,)
        assert metadata["n"] is None
        with pytest.raises(ValueError, match="Composite"):
            made.save(4, args=args.StandardSave(TREE))


def test_single_json(ocp, tmp_path):
    with manager(ocp, tmp_path) as made:
        made.save(0, args=ocp.args.JsonSave({"a": (1, 2), "b": {"c": None}, "": 0.5}))
        expected = {"a": [1, 2], "b": {"c": None}, "": 0.5}
        assert made.restore(0, args=ocp.args.JsonRestore()) == expected
        assert made.restore(0) == expected
        with pytest.raises(TypeError):
            made.save(1, args=ocp.args.JsonSave({"a": object()}))


@pytest.mark.parametrize("value", [np.arange(3.0), jnp.arange(3), 7, 2.5])
def test_single_arrays(ocp, tmp_path, value):
    with manager(ocp, tmp_path) as made:
        made.save(0, args=ocp.args.ArraySave(value))
        restored = made.restore(0, args=ocp.args.ArrayRestore())
        np.testing.assert_array_equal(restored, value)
        assert isinstance(restored, jax.Array) == isinstance(value, jax.Array)
        as_numpy = ocp.RestoreArgs(restore_type=np.ndarray, dtype=np.float32)
        if not isinstance(value, int | float):
            restored = made.restore(0, args=ocp.args.ArrayRestore(restore_args=as_numpy))
            assert restored.dtype == np.float32


@pytest.mark.parametrize("make", [jax.random.key, jax.random.PRNGKey])
def test_jax_random_keys(ocp, tmp_path, make):
    key = make(5)
    with manager(ocp, tmp_path) as made:
        made.save(0, args=ocp.args.JaxRandomKeySave(key))
        restored = made.restore(0, args=ocp.args.JaxRandomKeyRestore())
        assert restored.dtype == key.dtype
        np.testing.assert_array_equal(jax.random.bits(restored, (3,)), jax.random.bits(key, (3,)))


@pytest.mark.parametrize("legacy", [True, False])
def test_numpy_random_keys(ocp, tmp_path, legacy):
    generator = np.random.RandomState(5)
    state = generator.get_state(legacy=legacy)
    with manager(ocp, tmp_path) as made:
        made.save(0, args=ocp.args.NumpyRandomKeySave(state))
        expected = generator.rand()
        generator.set_state(made.restore(0, args=ocp.args.NumpyRandomKeyRestore()))
        assert generator.rand() == expected


def test_protocol_buffers(ocp, tmp_path):
    proto = struct_pb2.Struct()
    proto.update({"name": "vcjax", "layers": [1, 2]})
    with manager(ocp, tmp_path) as made:
        made.save(0, args=ocp.args.ProtoSave(proto))
        assert made.restore(0, args=ocp.args.ProtoRestore(struct_pb2.Struct)) == proto


# -- handlers of others --------------------------------------------------------


class TextHandler(orbax.checkpoint.CheckpointHandler):
    """Synchronous, with a folder of its own and an empty file, as users write them."""

    closed = 0

    def save(self, directory, args):
        (directory / "texts").mkdir()
        (directory / "texts" / "a%2Fb.txt").write_text(args.text)
        (directory / "empty").write_bytes(b"")
        (directory / "nothing").mkdir()

    def restore(self, directory, args):
        assert (directory / "empty").read_bytes() == b""
        assert (directory / "nothing").is_dir()
        return (args.prefix if args else "") + (directory / "texts" / "a%2Fb.txt").read_text()

    def metadata(self, directory):
        return len((directory / "texts" / "a%2Fb.txt").read_text())

    def close(self):
        type(self).closed += 1


@orbax.checkpoint.args.register_with_handler(TextHandler, for_save=True)
@dataclasses.dataclass
class TextSave(orbax.checkpoint.args.CheckpointArgs):
    text: str


@orbax.checkpoint.args.register_with_handler(TextHandler, for_restore=True)
@dataclasses.dataclass
class TextRestore(orbax.checkpoint.args.CheckpointArgs):
    prefix: str = ""


class SlowHandler(orbax.checkpoint.AsyncCheckpointHandler):
    """Asynchronous: what it writes is there when its futures are."""

    async def async_save(self, directory, args) -> Any:
        from concurrent.futures import ThreadPoolExecutor

        def write():
            (directory / "data.json").write_text(json.dumps(args.item))

        with ThreadPoolExecutor(1) as executor:
            return [executor.submit(write)]

    def save(self, directory, args):
        raise AssertionError("async_save is to be called")

    def finalize(self, directory):
        (directory / "final").write_text("yes")

    def restore(self, directory, args=None):
        assert (directory / "final").read_text() == "yes"
        return json.loads((directory / "data.json").read_text())


@orbax.checkpoint.args.register_with_handler(SlowHandler, for_save=True, for_restore=True)
@dataclasses.dataclass
class SlowArgs(orbax.checkpoint.args.CheckpointArgs):
    item: object = None


@pytest.mark.parametrize("background", [False, True])
def test_handlers_of_others(ocp, tmp_path, background):
    args, closed = ocp.args, TextHandler.closed
    options = ocp.CheckpointManagerOptions(enable_async_checkpointing=background)
    handlers = {"text": TextHandler(), "slow": SlowHandler()}
    with ocp.CheckpointManager(tmp_path, options=options, item_handlers=handlers) as made:
        for step in range(2):
            made.save(
                step,
                args=args.Composite(text=TextSave(f"grün {step}"), slow=SlowArgs({"at": step})),
            )
        made.wait_until_finished()
        restored = made.restore(1, args=args.Composite(text=TextRestore("> "), slow=SlowArgs()))
        assert restored.text == "> grün 1"
        assert restored.slow == {"at": 1}
        assert made.restore(0).text == "grün 0"
        assert made.item_metadata(0).text == 6
    assert TextHandler.closed > closed
    with ocp.CheckpointManager(tmp_path, options=options) as made:
        assert made.restore(1).text == "grün 1"  # the handler is found by its name


def test_a_registry_of_handlers(ocp, tmp_path):
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    registry.add("text", TextSave, TextHandler)
    registry.add("text", TextRestore, TextHandler)
    registry.add(None, ocp.args.StandardSave, ocp.StandardCheckpointHandler)
    registry.add(None, ocp.args.StandardRestore, ocp.StandardCheckpointHandler)
    args = ocp.args
    with manager(ocp, tmp_path, handler_registry=registry) as made:
        made.save(0, args=args.Composite(text=TextSave("x"), state=args.StandardSave(TREE)))
        restored = made.restore(0, args=args.Composite(text=TextRestore(), state=None))
        assert restored.text == "x"
        assert_same(restored.state, TREE)


def test_a_single_item_by_a_handler(ocp, tmp_path):
    with manager(ocp, tmp_path, item_handlers=TextHandler()) as made:
        made.save(0, args=TextSave("alone"))
        assert made.restore(0, args=TextRestore()) == "alone"
        with pytest.raises(ValueError, match="Composite"):
            made.save(1, args=ocp.args.Composite(a=TextSave("x")))


# -- the oldest calls ----------------------------------------------------------


def test_a_legacy_checkpointer(ocp, tmp_path):
    checkpointer = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
    options = ocp.CheckpointManagerOptions(max_to_keep=2)
    with ocp.CheckpointManager(tmp_path, checkpointer, options) as made:
        cast = jax.tree.map(lambda _: ocp.SaveArgs(dtype=np.dtype("float16")), TREE)
        assert made.save(0, TREE)
        assert made.save(1, TREE, {"save_args": cast})
        assert_same(made.restore(0), TREE)
        assert made.restore(1)["w"].dtype == np.float16
        args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), TREE)
        restored = made.restore(0, TREE, {"restore_args": args})
        assert type(restored["b"]) is np.ndarray


def test_legacy_checkpointers_by_item(ocp, tmp_path):
    checkpointers = {
        "params": ocp.PyTreeCheckpointer(),
        "config": ocp.Checkpointer(ocp.JsonCheckpointHandler()),
    }
    with ocp.CheckpointManager(tmp_path, checkpointers) as made:
        assert made.save(0, {"params": TREE, "config": {"lr": 1}})
        restored = made.restore(0, {"params": TREE, "config": None})
        assert_same(restored["params"], TREE)
        assert restored["config"] == {"lr": 1}
    with pytest.raises(ValueError, match=r"[Cc]heckpointer"):
        ocp.CheckpointManager(tmp_path, {"params": 3})


class OldHandler(orbax.checkpoint.CheckpointHandler):
    """Without registered arguments."""

    def save(self, directory, item, suffix=""):
        (directory / "x").write_text(item + suffix)

    def restore(self, directory, item=None):
        return (directory / "x").read_text() + (item or "")


def test_handlers_without_argument_classes(ocp, tmp_path):
    checkpointer = ocp.Checkpointer(OldHandler())
    with ocp.CheckpointManager(tmp_path, {"x": checkpointer}) as made:
        made.save(0, {"x": "text"}, {"x": {"suffix": "!"}})
        assert made.restore(0, {"x": "?"})["x"] == "text!?"


# -- ours alone ----------------------------------------------------------------


def test_how_items_lie_in_the_commit(ours, tmp_path):
    args = ours.args
    with manager(ours, tmp_path) as made:
        made.save(
            0,
            args=args.Composite(
                state=args.PyTreeSave(TREE, custom_metadata={"by": "me"}),
                note=args.JsonSave({"lr": 0.1}),
                text=TextSave("abc"),
            ),
        )
        tree = made.repo.restore("step:0")
        assert tree["note"] == {"lr": 0.1}
        assert bytes(tree["text"]["texts"]["a%2Fb.txt"]) == b"abc"
        assert_same(tree["state"], TREE)
        assert made.item_metadata(0).state.custom_metadata == {"by": "me"}
        handlers = made.metadata(0).item_handlers
        assert handlers["text"] == TextHandler.typestr()
        assert ours.StandardCheckpointHandler.typestr() == STANDARD
        with pytest.raises(VcjaxError, match="TextRestore"):
            made.restore(0, args=args.Composite(state=TextRestore()))


def test_within_an_event_loop(ours, tmp_path):
    """As in a notebook."""

    async def main():
        with manager(ours, tmp_path) as made:
            made.save(0, args=ours.args.Composite(slow=SlowArgs({"at": 1})))
            return made.restore(0).slow

    assert asyncio.run(main()) == {"at": 1}


def test_a_handler_that_fails_saves_nothing(ours, tmp_path):
    with manager(ours, tmp_path) as made:
        with pytest.raises(TypeError):
            made.save(0, args=ours.args.Composite(slow=SlowArgs(object())))
        assert made.all_steps() == []
        assert made.save(0, args=ours.args.Composite(slow=SlowArgs(1)))


def test_unchanged_items_cost_nothing(ours, tmp_path):
    big = np.random.default_rng(0).normal(size=50_000)
    with manager(ours, tmp_path) as made:
        for step in range(3):
            args = ours.args.Composite(
                state=ours.args.StandardSave({"big": big, "n": step}), text=TextSave("x" * 10_000)
            )
            made.save(step, args=args)
        leaves = [k for k in made.repo.store.keys("leaves/") if k.endswith("zarr.json")]
        assert len(leaves) == 1
        assert len(list(made.repo.store.keys("packs/"))) <= 2


def test_a_handler_that_nobody_knows(ours, tmp_path):
    with manager(ours, tmp_path) as made:
        made.save(0, args=ours.args.Composite(text=TextSave("x")))
        stored = made.repo.resolve("HEAD").metadata
        stored["orbax"]["items"]["text"]["handler"] = "some.module.Handler"
        made.repo.commit(made.repo.restore("HEAD"), metadata={**stored, "step": 1})
        made.reload()
        assert made.item_metadata(1).text is None
        with pytest.raises(ValueError, match=r"some\.module\.Handler"):
            made.restore(1)
        restored = made.restore(1, args=ours.args.Composite(text=TextRestore()))
        assert restored.text == "x"

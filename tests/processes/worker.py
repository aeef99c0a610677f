"""Processes of a JAX program that do what a test asks. Run as a script; imports once, then forks.

Every line that it reads is a group to start: how many processes, devices and where.
Each process connects to the socket of the test and answers its calls there.
"""

import collections
import functools
import json
import os
import signal
import socket
import sys
import threading
import traceback
import unittest.mock

import jax
import ml_dtypes
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import vcjax
import vcjax.hashing
import vcjax.objects.write
import vcjax.processes.conversation
import vcjax.processes.exchange
import vcjax.repo.restore
import vcjax.repo.shared_commit

PATIENCE = 300.0
"""Seconds that what is no fault may take: that of `tests/subprocesses.py`."""

SHARDED = {
    "rows": ("x",),
    "columns": (None, "x"),
    "both": ("y", "x"),
    "aligned": ("x",),
    "replicated": (),
    "pack": ("x",),
    "inline": ("x",),
    "int4": ("x",),
    "step": (),
    "empty": (),
    "deep": (None, "x", None),
}


def reference(seed=0):
    """The content of the tree as one process has it; big leaves have several chunks."""
    rng = np.random.default_rng(seed)
    return {
        "rows": rng.normal(size=(3000, 1000)).astype(np.float32),
        "columns": rng.normal(size=(1600, 800)).astype(np.float32),
        "both": rng.normal(size=(1200, 2000)).astype(ml_dtypes.bfloat16),
        "aligned": rng.normal(size=(4096, 512)).astype(np.float32),
        "replicated": rng.normal(size=(1200, 1000)).astype(np.float32),
        "pack": rng.normal(size=(1024, 8)).astype(np.float32),
        "inline": rng.normal(size=8).astype(np.float32),
        "int4": rng.integers(-8, 8, (800, 100)).astype(ml_dtypes.int4),
        "step": np.asarray(7 + seed, np.int32),
        "empty": np.zeros((0, 4), np.float32),
        "deep": rng.normal(size=(3, 500, 1200)).astype(np.float32),
        "host": rng.normal(size=20_000),
        "rate": 0.1 + seed,
    }


def mesh(shape):
    return Mesh(np.asarray(jax.devices()).reshape(shape), ("x", "y"))


def shardings(shape):
    return {
        name: NamedSharding(mesh(shape), PartitionSpec(*axes)) for name, axes in SHARDED.items()
    }


def spread(value, sharding):
    return jax.make_array_from_callback(
        value.shape, sharding, lambda index: value[index], dtype=value.dtype
    )


def distributed(shape, seed=0, names=None):
    values = reference(seed)
    if names is not None:
        values = {name: values[name] for name in names}
    tree = {
        name: spread(values[name], sharding)
        for name, sharding in shardings(shape).items()
        if name in values
    }
    if names is None:
        tree["keys"] = spread(
            jax.random.split(jax.random.key(seed), 8),
            NamedSharding(mesh(shape), PartitionSpec("x")),
        )
    return {**values, **tree}


def abstract(shape):
    """What to restore onto: the same tree without data, on another mesh."""
    places, like = shardings(shape), reference()
    for name, sharding in places.items():
        like[name] = jax.ShapeDtypeStruct(like[name].shape, like[name].dtype, sharding=sharding)
    split = NamedSharding(mesh(shape), PartitionSpec("x"))
    like["keys"] = jax.ShapeDtypeStruct((8,), jax.random.key(0).dtype, sharding=split)
    return like


def differing(tree, seed):
    """The leaves whose shards here are not what they should be."""
    wrong, reference_ = set(), reference(seed)
    reference_["keys"] = np.asarray(jax.random.key_data(jax.random.split(jax.random.key(seed), 8)))
    for name, found in tree.items():
        expected = reference_[name]
        if name == "keys":
            found = jax.random.key_data(found)
        parts = [(found, expected)]
        if isinstance(found, jax.Array):
            parts = [(shard.data, expected[shard.index]) for shard in found.addressable_shards]
        if any(np.asarray(a).tobytes() != np.asarray(b).tobytes() for a, b in parts):
            wrong.add(name)
    return sorted(wrong)


def replace(place, name, function):
    """Another function from now on, in this process."""
    unittest.mock.patch.object(place, name, function).start()


written = collections.Counter()


def _count_chunks():
    """Notes in `written` how many bytes of chunks this process writes."""
    real = vcjax.objects.write.ArrayWriter.send

    def send(writer, key, header, contents, nbytes, *rest):
        written["bytes"] += nbytes
        real(writer, key, header, contents, nbytes, *rest)

    replace(vcjax.objects.write.ArrayWriter, "send", send)


@functools.cache
def opened(url, timeout=PATIENCE):
    repo = vcjax.Repository.open(url)
    repo.processes.timeout = timeout
    return repo


# What tests call -----------------------------------------------------------------


def init(url, **options):
    return vcjax.Repository.init(url, **options).url


def commit(url, shape, seed=0, change=None, message="saved", branch=None, names=None):
    tree = distributed(shape, seed, names)
    if change is not None:
        tree["rows"] = jax.jit(lambda x: x.at[-1, 0].set(change))(tree["rows"])
    before = written["bytes"]
    saved = opened(url).commit(tree, message, branch=branch, metadata={"step": seed})
    return {"digest": saved.digest, "written": written["bytes"] - before}


def restore(url, shape, revision="HEAD", seed=0, names=None):
    like, paths = abstract(shape), None
    if names is not None:
        like, paths = {name: like[name] for name in names}, names
    tree = opened(url).restore(revision, like=like, paths=paths)
    wrong = differing(tree, seed)
    placed = all(
        not isinstance(tree[name], jax.Array) or tree[name].sharding == like[name].sharding
        for name in like
    )
    return {"wrong": wrong, "placed": placed}


def commit_host(url, **leaves):
    """Leaves may name a process: {"w": {"0": 1, "1": 2}}."""
    me = str(jax.process_index())
    tree = {name: value.get(me, value.get("*")) for name, value in leaves.items()}
    tree = {name: np.asarray(v) if isinstance(v, list) else v for name, v in tree.items()}
    return opened(url).commit(tree, "host").digest


def commit_async(url, shape, seed, steps):
    """Saves while a training step with collectives of its own goes on, and donates its state."""
    tree = distributed(shape, seed)

    @functools.partial(jax.jit, donate_argnums=0)
    def train(x):
        return x * 0 + x.sum()

    future = opened(url).commit_async(tree, "async")
    for name in ("rows", "columns", "replicated"):
        value = tree.pop(name)
        for _ in range(steps):
            value = train(value)
        value.block_until_ready()
    return {"digest": future.result(PATIENCE).digest}


def tell(url, value):
    me = jax.process_index()
    return opened(url).processes.agree(lambda: [value, me])


def elsewhere(url, other, process):
    """One process has another folder under the same name."""
    repo = vcjax.Repository.open(url)
    repo.processes.timeout = PATIENCE
    if jax.process_index() == process:
        repo.store = vcjax.Repository.open(other).store
    return repo.commit({"w": np.arange(20_000.0)}, "").digest


def own(folder):
    """A repository of its own for each process."""
    repo = vcjax.Repository.init(f"{folder}/{jax.process_index()}", local=True)
    repo.commit({"w": jax.process_index()}, "mine")
    memory = vcjax.Repository.init("memory://own")
    memory.commit({"w": jax.process_index()}, "mine")
    return [repo.restore()["w"], memory.restore()["w"]]


def full_disk(url, shape, process, seed):
    """On one process no file can grow."""
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if jax.process_index() == process:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        return commit(url, shape, seed)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def donated(url, shape, process):
    """One process passes an array that it has donated already."""
    tree = {"w": distributed(shape)["rows"]}
    if jax.process_index() == process:
        tree["w"].delete()
    return opened(url).commit(tree, "").digest


def kill(url, shape, victim, where, timeout, names, background=False, seed=1):
    """Saves; the victim is killed in the middle of that."""
    repo = opened(url, timeout)
    tree = distributed(shape, seed, names)
    if jax.process_index() == victim:
        _kill_at(where)
    try:
        if background:
            repo.commit_async(tree, "lost").result()
        else:
            repo.commit(tree, "lost")
    except vcjax.VcjaxError as error:
        return {"kind": type(error).__name__, "hint": error.hint}
    return "saved"


def _kill_at(where):
    def die(*_, **__):
        os.kill(os.getpid(), signal.SIGKILL)

    if where == "exchange":
        replace(vcjax.processes.exchange, "_permute", die)
    elif where == "write":  # half of the chunks of a leaf are there, and no header
        real = vcjax.objects.write.ArrayWriter.send

        def some(writer, key, header, contents, nbytes, *rest):
            real(writer, key, header, list(contents)[:1], nbytes, *rest)
            writer.land_all()
            die()

        replace(vcjax.objects.write.ArrayWriter, "send", some)
    elif where == "publish":
        replace(vcjax.history.History, "write", die)
        replace(vcjax.history.History, "write_commit", die)


def alone(url, timeout):
    """Process 0 commits, and the others do not."""
    repo = vcjax.Repository.open(url)
    repo.processes.timeout = timeout
    repo.processes.agree(lambda: 0)
    if jax.process_index() != 0:
        return None
    with unittest.mock.patch.object(vcjax.processes.conversation, "LATE", 0.2):
        try:
            repo.commit({"w": 1}, "alone")
        except vcjax.errors.ProcessTimeoutError as error:
            return str(error)
    return "saved"


def flatten_spanning():
    try:
        vcjax.hashing.tree_digests({"w": distributed([4, 1])["rows"]})
    except vcjax.errors.UnsupportedLeafError as error:
        return str(error)
    return "not refused"


def probe():
    return [jax.process_index(), jax.process_count(), len(jax.devices())]


# ---------------------------------------------------------------------------------


def serve(group, index):
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", group["devices"])
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        f"127.0.0.1:{group['port']}", group["count"], index, shutdown_timeout_seconds=2
    )
    _count_chunks()
    channel = socket.create_connection(("127.0.0.1", group["channel"]))
    stream = channel.makefile("rw")
    stream.write(json.dumps({"index": index, "pid": os.getpid()}) + "\n")
    stream.flush()
    functions = {**globals(), **vars(sys.modules["managing"])}
    for line in stream:
        name, options = json.loads(line)
        try:
            answer = {"result": functions[name](**options)}
        except BaseException as error:
            message = "".join(traceback.format_exception_only(error))
            answer = {
                "error": type(error).__name__,
                "message": message,
                "path": getattr(error, "path", None),
                "trace": traceback.format_exc(),
            }
        stream.write(json.dumps(answer) + "\n")
        stream.flush()


def main():
    import managing  # noqa: F401  it takes some of the above, so it is imported last

    assert threading.active_count() == 1, "forking is safe only while there is one thread"
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        group = json.loads(line)
        for index in range(group["count"]):
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                try:
                    serve(group, index)
                finally:
                    os._exit(0)


if __name__ == "__main__":
    main()

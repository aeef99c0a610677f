"""Records that somebody else made: right checksums and digests, and wrong everything else."""

import copy
import json
import math

import msgpack
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import vcjax
from vcjax import hashing
from vcjax.errors import VcjaxError
from vcjax.hashing import checksum, digest_bytes
from vcjax.history import Commit, Manifest, MergeRequest, canonical, pruned
from vcjax.history.ref import Head, decode_detached, decode_head, decode_ref, new_ref
from vcjax.objects.header import ATTRIBUTE, ArrayHeader
from vcjax.objects.relation import Base, Relation, StoredPart
from vcjax.objects.zarr import new_header
from vcjax.repo.settings import Settings

DIGEST = "ab" * 32

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.sampled_from([0, -1, 1, 2**31, 2**53, 2**62, 10**15]),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from([DIGEST, "float32", "int4", "dense", "difference", "python", "/", "~"]),
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=4,
)
binary_values = values | st.binary(max_size=40)


def places(value, path=()):
    """Where something can be changed, at every depth."""
    yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*path, key))


@st.composite
def changed(draw, seeds, replacements):
    """One of the seeds in which a member, anywhere, is another one or gone."""
    value = copy.deepcopy(draw(st.sampled_from(seeds)))
    path = draw(st.sampled_from(list(places(value))[1:]))
    at = value
    for key in path[:-1]:
        at = at[key]
    if isinstance(at, dict) and draw(st.booleans()):
        del at[path[-1]]
    else:
        at[path[-1]] = draw(replacements)
    return value


def dense(dtype="float32", shape=(1200, 1000)):
    content = np.zeros(shape, dtype)
    return new_header(dtype, shape, hashing.digest_array(dtype, content), compress=True)


def headers():
    """Headers of all kinds, as the JSON objects that they are stored as."""
    array = dense()
    common = {"digest": DIGEST, "chunks": array.chunks, "dtype": "float32", "written": 1.0}
    difference = ArrayHeader(
        array.metadata, update="difference", base=DIGEST, own=(0,), depth=1, **common
    )
    part = StoredPart(dense("int8", (3,)).metadata, "int8", DIGEST)
    bases = (
        Base(DIGEST, "float32", (2, 3)),
        Base(DIGEST, "int8", (2,), packed=vcjax.history.Packed(DIGEST, 64, 2)),
        Base(DIGEST, "int8", (1,), inline=b"x"),
    )
    relation = Relation(bases, {"rest": part}, {"rank": 4}, package="other 1.0")
    shared = Relation((), {"rest": part}, members=(f"leaves/ab/{DIGEST}",))
    other = {"metadata": {}, "update": "other", "shape": (1200, 1000), **common}
    group = ArrayHeader({}, DIGEST, (), "", 1.0, update="other", relation=shared)
    found = [array, difference, ArrayHeader(**other, relation=relation), group]
    found.append(ArrayHeader(**other, group=DIGEST))
    return [json.loads(header.encode()) for header in found]


HEADERS = headers()


def encode_header(document):
    body = {name: document[name] for name in document if name != "attributes"}
    attributes = document.get("attributes")
    if isinstance(attributes, dict) and isinstance(attributes.get(ATTRIBUTE), dict):
        attributes[ATTRIBUTE]["check"] = checksum(body | attributes[ATTRIBUTE])
    return json.dumps(document).encode()


def use_header(data):
    header = ArrayHeader.decode(f"leaves/ab/{DIGEST}", data)
    assert math.prod(header.lengths) < 2**63
    again = ArrayHeader.decode("again", header.encode())
    assert (again.lengths, again.chunks, again.relation) == (
        *(header.lengths, header.chunks),
        header.relation,
    )
    return header.needs, header.inner("x")


@settings(max_examples=600)
@given(changed(HEADERS, values))
def test_headers(document):
    refused_or(use_header, encode_header(document))


def refused_or(use, *given):
    """Whatever it is, it is used or refused by an error of ours."""
    try:
        use(*given)
    except VcjaxError:
        return


def tagged(encoded):
    _, data = encoded
    return msgpack.unpackb(data, unicode_errors="surrogatepass")


def manifests():
    repo = vcjax.Repository.init("memory://hostile-manifests")
    tree = {
        "large": np.zeros((1200, 1000), np.float32),
        "packed": np.zeros(500, np.float32),
        "inline": np.zeros(3, np.int8),
        "values": [1, 2.5, True, "text", b"bytes", 1j, None, (1,)],
    }
    commit = repo.commit(tree, "x", metadata={"step": 3, "a": [1, {"b": None}]}, metrics={"m": 1})
    return repo.history.manifest_of(commit), commit


MANIFEST, COMMIT = manifests()


def use_manifest(fields):
    data = hashing.canonical_msgpack(fields)
    manifest = Manifest.decode(digest_bytes(data).hex(), data)
    assert manifest.nbytes < 2**63 * max(1, len(manifest.leaves))
    assert len(manifest.tree_digest) == 64
    assert manifest.locations is not None
    assert Manifest.decode(*manifest.encode()) == manifest


def use_commit(fields):
    data = hashing.canonical_msgpack(fields)
    commit = Commit.decode(digest_bytes(data).hex(), data)
    assert json.dumps(commit.to_dict())
    again = Commit.decode(*commit.encode())
    assert (again.parents, again.message) == (commit.parents, commit.message)
    assert str(commit)[:8] == commit.digest[:8]


@settings(max_examples=600)
@given(changed([tagged(MANIFEST.encode())], binary_values))
def test_manifests(fields):
    refused_or(use_manifest, fields)


@settings(max_examples=400)
@given(changed([tagged(COMMIT.encode())], binary_values))
def test_commits(fields):
    refused_or(use_commit, fields)


REF = new_ref("refs/heads/main", DIGEST, 3, "commit: x", restores=1)
DETACHED = new_ref("HEAD", DIGEST, 3, "switch")
REQUEST = MergeRequest(
    "refs/heads/main", DIGEST, (DIGEST,), ("main", "other"), (("**", "ours"),), {"name": "ties"}
)
STORE = vcjax.Repository.init("memory://hostile-prunings").store


def use_ref(data):
    ref = decode_ref(REF.name, data)
    assert decode_ref(ref.name, ref.encode(), ref.log_key) == ref


def use_head(data):
    head = decode_head(data)
    assert (head.branch is None) != (head.commit is None)
    decode_detached(data)


def use_pruning(data):
    STORE.write(f"pruned/{DIGEST}", data)
    assert "pruned" in str(pruned.Prunings(STORE).get(DIGEST))


def use_request(data):
    request = MergeRequest.decode("merges/refs/heads/main", data)
    assert MergeRequest.decode("again", request.encode()) == request
    assert len(request.commits) == 1 + len(request.theirs)


RECORDS = {
    "ref": (REF.encode(), use_ref),
    "head": (Head("main").encode(), use_head),
    "detached": (DETACHED.encode(), use_head),
    "merge": (REQUEST.encode(), use_request),
    "pruning": (canonical.encode_record({"policy": "p", "time": 1.5}), use_pruning),
    "settings": (Settings().encode(), lambda data: Settings.decode("here", data)),
}


@pytest.mark.parametrize("name", RECORDS)
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(draw=st.data())
def test_records(name, draw):
    data, use = RECORDS[name]
    use(data)
    seed = json.loads(data)
    body = draw.draw(changed([{key: seed[key] for key in seed if key != "check"}], values))
    refused_or(use, canonical.encode_record(body))


@pytest.mark.parametrize("name", [*RECORDS, "header"])
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(draw=st.data())
def test_bytes_that_are_no_records(name, draw):
    data, use = RECORDS.get(name) or (encode_header(HEADERS[0]), use_header)
    at = draw.draw(st.integers(0, len(data)))
    other = draw.draw(st.binary(max_size=20) | st.sampled_from([b"[" * 200_000, b"9" * 5_000]))
    stop = draw.draw(st.integers(at, len(data)))
    refused_or(use, data[:at] + other + data[stop:])

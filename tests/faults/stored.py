"""A tree that is stored in every way, and the files that a repository makes of it."""

import numpy as np


def tree(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "params/odd": {"big": rng.normal(size=20_000), "small": rng.normal(size=500)},
        "tiny": rng.normal(size=4),
        "step": 7 + seed,
    }


def same(one, other):
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return np.array_equal(one, other)


def files(folder, kind):
    patterns = {
        "chunk": "leaves/*/*/c/*",
        "header": "leaves/*/*/zarr.json",
        "pack": "packs/*/*/c/*",
        "pack header": "packs/*/*/zarr.json",
        "manifest": "manifests/*/*",
        "commit": "commits/*/*",
        "ref": "refs/heads/*",
        "tag": "refs/tags/*",
        "log": "log/refs/heads/*",
        "HEAD": "HEAD",
        "settings": "vcjax.json",
    }
    return sorted(path for path in folder.glob(patterns[kind]) if path.is_file())


KINDS = ["chunk", "header", "pack", "pack header", "manifest", "commit"]
KINDS += ["ref", "tag", "log", "HEAD", "settings"]

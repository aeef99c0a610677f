"""Version control for JAX PyTrees.

    repo = vcjax.Repository.init("models")
    commit = repo.commit(params, "first try", metrics={"accuracy": 0.9})
    params = repo.restore("HEAD", like=params)

The packages, each of which may import only what stands below it:

    cli
    report
    orbax
    repo
    mergekit  threeway
    streaming
    formats  diffing  merging
    objects
    history  storage  updates  hashing  processes
    tree
    errors

Importing vcjax does not import JAX; what needs it is loaded on first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""The metadata of a run, from the moment that a manager is made with them.

Every step has them in its commit, where pushes and exports find them. Until there is a step
they are in a record of their own.
"""

from collections.abc import Mapping

from vcjax.history import Commit, canonical
from vcjax.storage import Store

KEY = "orbax/root_metadata.json"

_HINT = f"delete {KEY}; the steps have the metadata too"


def stored(store: Store, tip: Commit | None) -> dict[str, object] | None:
    """The metadata of the run; None if it was given none.

    Args:
        store: of the repository.
        tip: the commit that the branch points to.

    Raises:
        CorruptionError: the record is damaged.
    """
    fields = tip.metadata.get("orbax") if tip is not None else None
    if isinstance(fields, dict) and fields.get("root_metadata"):
        return dict(fields["root_metadata"])
    data = store.read(KEY)
    return None if data is None else canonical.decode_record(KEY, data, _HINT)["custom_metadata"]


def keep(store: Store, metadata: Mapping[str, object]) -> dict[str, object]:
    """Writes the record, if there is none; gives back what it says."""
    versioned = store.read_versioned(KEY)
    if versioned.value is None:
        body = canonical.encode_record({"custom_metadata": dict(metadata)})
        if store.compare_and_set(KEY, body, versioned):
            return dict(metadata)
    return stored(store, None) or {}

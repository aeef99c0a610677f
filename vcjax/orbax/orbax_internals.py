"""What vcjax uses of Orbax and Orbax does not make public.

Everything else in vcjax asks here (docs/architecture.md has the table). Importing this
does not load Orbax.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import orbax.checkpoint as ocp
    from jaxtyping import PyTree

STANDARD = "orbax.checkpoint._src.handlers.standard_checkpoint_handler.StandardCheckpointHandler"
"""What Orbax calls the handler of trees, in the metadata of a step."""


def rich_types() -> Any:
    """`pytree_metadata_options=` by which Orbax notes tuples and namedtuples.

    `PyTreeCheckpointHandler` takes it; no public name makes it.
    """
    from orbax.checkpoint._src.metadata import pytree_metadata_options

    return pytree_metadata_options.PyTreeMetadataOptions(support_rich_types=True)


def tree_metadata(tree: "PyTree", custom_metadata: "PyTree") -> "PyTree":
    """What Orbax's handlers return as the metadata of a tree.

    Args:
        tree: dicts, lists and tuples of Orbax's metadata of leaves.
        custom_metadata: given with the item; None if nothing was.
    """
    from orbax.checkpoint._src.metadata import tree as metadata

    return metadata.build_default_tree_metadata(tree, custom_metadata=custom_metadata)


def registry_of(handler: "ocp.CompositeCheckpointHandler") -> "ocp.CheckpointHandlerRegistry":
    """The registry of handlers that a `CompositeCheckpointHandler` was made with."""
    return handler._handler_registry

"""Which handler saves and restores an item, and what our own do with its arguments."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_args

from vcjax import tree
from vcjax.errors import VcjaxError
from vcjax.orbax.items import handler_files as foreign
from vcjax.orbax.items.handler_files import Positional
from vcjax.orbax.items.record import DEFAULT_ITEM, ItemRecord, Kind
from vcjax.orbax.items.restore import restore_plain, restore_pytree, restore_standard
from vcjax.orbax.items.stored_item import StoredItem, record_shardings
from vcjax.orbax.manager.shared_save import Sharing

_KINDS: dict[type, Kind] = {
    ocp.StandardCheckpointHandler: "tree",
    ocp.PyTreeCheckpointHandler: "tree",
    ocp.ArrayCheckpointHandler: "tree",
    ocp.JaxRandomKeyCheckpointHandler: "tree",
    ocp.NumpyRandomKeyCheckpointHandler: "tree",
    ocp.JsonCheckpointHandler: "json",
}
"""Handlers whose work is done here; of exactly these classes, as others may do more."""


class ItemHandlers:
    """The handlers of a manager or checkpointer.

    Args:
        names: the items that there may be, where that is settled beforehand.
        handlers: one handler, or {item name: handler or None}.
        registry: Orbax's registry of handlers by item and argument class.
        single: whether there is only one object, which has no name.
    """

    def __init__(
        self,
        names: Sequence[str] | None = None,
        handlers: Any = None,
        registry: Any = None,
        single: bool | None = None,
    ):
        self.single = single
        self._registry = ocp.DefaultCheckpointHandlerRegistry(registry)
        self._unregistered: dict[str, Any] = {}
        self._global: dict[type, Any] = {}
        if handlers is not None and not isinstance(handlers, Mapping):
            handlers, self.single = {DEFAULT_ITEM: handlers}, True
        elif names is not None or handlers is not None:
            self.single = False
        self._names = {*(names or ()), *(handlers or ())} or None
        for name, handler in (handlers or {}).items():
            if handler is not None:
                self._add(name, handler)

    @property
    def are_given(self) -> bool:
        """Whether anybody has said which handlers to use."""
        return bool(self._unregistered or self._registry.get_all_entries())

    def _add(self, name: str, handler: Any) -> None:
        if not checkpoint_args.has_registered_args(handler):
            self._unregistered[name] = handler
            return
        for args in dict.fromkeys(checkpoint_args.get_registered_args_cls(handler)):
            self._registry.add(name, args, handler)

    def for_args(self, name: str, args: Any) -> Any:
        """The handler of an item that is saved or restored by some arguments.

        Raises:
            ValueError: there is none.
        """
        if isinstance(args, Positional):
            return self._unregistered[name]
        if not isinstance(args, ocp.args.CheckpointArgs):
            raise ValueError(
                f"item {name!r}: expected one of ocp.args, such as ocp.args.StandardSave(…), "
                f"got {type(args).__qualname__}"
            )
        for item in (name, None):
            if self._registry.has(item, args):
                return self._registry.get(item, args)
        if self._names is not None and name not in self._names:
            known = ", ".join(sorted(self._names))
            raise ValueError(f"there is no item {name!r}; the manager was made for: {known}")
        cls = checkpoint_args.get_registered_handler_cls(args)
        if cls not in self._global:
            self._global[cls] = cls()
        return self._global[cls]

    def for_item(self, item: StoredItem) -> Any:
        """The handler of an item that is restored without arguments.

        Raises:
            ValueError: nothing says which one that is.
        """
        if item.name in self._unregistered:
            return self._unregistered[item.name]
        handler = self._registered(item.name)
        if handler is not None:
            return handler
        cls = _subclasses(ocp.CheckpointHandler).get(item.record.handler)
        if cls is None:
            raise ValueError(
                f"item {item.name!r} was saved by {item.record.handler or 'nobody knows what'}, "
                "which is not imported: give args= for it, or a handler_registry"
            )
        return self._global.setdefault(cls, cls())

    def _registered(self, name: str) -> Any:
        entries = self._registry.get_all_entries().items()
        return next((handler for (item, _), handler in entries if item == name), None)

    def arguments(self, name: str, item: Any, kwargs: Mapping[str, Any], save: bool) -> Any:
        """What Orbax's older calls mean: an item and keywords instead of arguments."""
        if name in self._unregistered:
            given = () if item is None and not save else (item,)
            return Positional(given, dict(kwargs))
        handler = self._registered(name)
        if handler is None:
            handler = ocp.StandardCheckpointHandler if save else ocp.PyTreeCheckpointHandler
        cls: Any = checkpoint_args.get_registered_args_cls(handler)[not save]
        return cls(**kwargs) if item is None and not save else cls(item, **kwargs)

    def close(self) -> None:
        """Closes the handlers."""
        entries = self._registry.get_all_entries().values()
        for handler in {id(handler): handler for handler in entries}.values():
            handler.close()
        for handler in (*self._unregistered.values(), *self._global.values()):
            handler.close()


def _subclasses(cls: Any) -> dict[str, Any]:
    """The classes of handlers that are imported, by the name that Orbax gives them."""
    found = {}
    for sub in cls.__subclasses__():
        if sub.__module__ != "vcjax.orbax.files.export":  # signs as others, and restores nothing
            found[sub.typestr()] = sub
            found.update(_subclasses(sub))
    return found


# -- saving --------------------------------------------------------------------


@contextmanager
def encoded(
    handler: Any, args: Any, sharing: Sharing | None = None
) -> Iterator[tuple[Any, ItemRecord]]:
    """The tree in which an item is committed, and its record.

    Args:
        sharing: with the other processes, if they save the same item.

    Raises:
        ValueError: there is nothing to save.
    """
    kind = "files" if isinstance(args, Positional) else _KINDS.get(type(handler), "files")
    if kind == "files":
        content = foreign.written(handler, args, sharing)
    else:
        content = nullcontext(_content(args, kind))
    with content as item:
        shardings = record_shardings(item) if kind == "tree" else ()
        custom = getattr(args, "custom_metadata", None)
        yield item, ItemRecord(kind, name_of(handler), custom, shardings)


def name_of(handler: Any) -> str:
    """What Orbax calls the class of a handler."""
    cls = type(handler)
    typestr = getattr(cls, "typestr", None)
    return typestr() if typestr is not None else f"{cls.__module__}.{cls.__qualname__}"


def _content(args: Any, kind: Kind) -> Any:
    if kind == "json":
        return json.loads(json.dumps(args.item))
    if args.item is None:
        raise ValueError("Must provide item to save.")
    save_args = getattr(args, "save_args", None)
    return args.item if save_args is None else _cast(args.item, save_args)


def _cast(item: Any, save_args: Any) -> Any:
    """The item with every leaf cast as its `SaveArgs` say; chunk sizes are ours to choose."""
    template = tree.template(item)
    given = tree.template(save_args).targets
    values = dict(template.targets)
    for path, value in values.items():
        dtype = getattr(given.get(path), "dtype", None)
        if dtype is None:
            continue
        if isinstance(value, jax.Array | np.ndarray | np.generic):
            values[path] = value.astype(dtype)
        elif isinstance(value, bool | int | float | complex):
            values[path] = jnp.asarray(value, dtype).item()
    return template.build(values)


# -- restoring -----------------------------------------------------------------


def decoded(handlers: ItemHandlers, item: StoredItem, args: Any) -> Any:
    """An item as arguments ask for it; None: as it was saved.

    Raises:
        VcjaxError: it was saved as files and these arguments are not of a handler's.
        StructureError: it does not fit; names every path.
    """
    if args is None or item.record.kind == "files":
        return _decoded_by_handler(handlers, item, args)
    match args:
        case ocp.args.StandardRestore():
            return restore_standard(item, args)
        case ocp.args.PyTreeRestore():
            return restore_pytree(item, args)
        case ocp.args.ArrayRestore():
            return restore_pytree(item, ocp.args.PyTreeRestore(restore_args=args.restore_args))
        case ocp.args.JaxRandomKeyRestore():
            return restore_pytree(item, ocp.args.PyTreeRestore(restore_args=args.restore_args))
        case ocp.args.NumpyRandomKeyRestore() | ocp.args.JsonRestore():
            return restore_plain(item)
    raise VcjaxError(
        f"item {item.name!r} was saved as a {item.record.kind} by {item.record.handler}; "
        f"{type(args).__qualname__} is for files of another handler",
        hint="restore it by the arguments that go with the ones it was saved by",
    )


def _decoded_by_handler(handlers: ItemHandlers, item: StoredItem, args: Any) -> Any:
    if item.record.kind != "files":
        return restore_plain(item)
    if args is not None:
        handler = handlers.for_args(item.name, args)
    else:
        handler = handlers.for_item(item)
        args = _default(handler)
    return foreign.restore(handler, item, args)


def _default(handler: Any) -> Any:
    """Arguments to restore by that ask for nothing in particular.

    Raises:
        ValueError: the handler needs to be told something.
    """
    if not checkpoint_args.has_registered_args(handler):
        return Positional()
    _, cls = checkpoint_args.get_registered_args_cls(handler)
    try:
        return cls()
    except TypeError as error:
        raise ValueError(f"{cls.__qualname__} has to be given: {error}") from error

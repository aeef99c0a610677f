"""Which handler saves and restores an item, and what Orbax's older calls ask of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import orbax.checkpoint as ocp
from jaxtyping import PyTree
from orbax.checkpoint import checkpoint_args
from orbax.checkpoint.handlers import CheckpointHandlerRegistry

from vcjax.orbax.items.record import DEFAULT_ITEM
from vcjax.orbax.items.stored_item import StoredItem


@dataclass(frozen=True)
class Positional:
    """Arguments of a handler for which no argument classes are registered."""

    args: tuple[object, ...] = ()
    kwargs: Mapping[str, object] = field(default_factory=dict)


Arguments = ocp.args.CheckpointArgs | Positional
"""What an item is saved or restored by."""


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
        handlers: ocp.CheckpointHandler | Mapping[str, ocp.CheckpointHandler | None] | None = None,
        registry: CheckpointHandlerRegistry | None = None,
        single: bool | None = None,
    ):
        self.single = single
        self._registry = ocp.DefaultCheckpointHandlerRegistry(registry)
        self._unregistered: dict[str, ocp.CheckpointHandler] = {}
        self._global: dict[type, ocp.CheckpointHandler] = {}
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

    def _add(self, name: str, handler: ocp.CheckpointHandler) -> None:
        if not checkpoint_args.has_registered_args(handler):
            self._unregistered[name] = handler
            return
        for args in dict.fromkeys(checkpoint_args.get_registered_args_cls(handler)):
            self._registry.add(name, args, handler)

    def for_args(self, name: str, args: Arguments) -> ocp.CheckpointHandler:
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

    def for_item(self, item: StoredItem) -> ocp.CheckpointHandler:
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

    def _registered(self, name: str) -> ocp.CheckpointHandler | None:
        entries = self._registry.get_all_entries().items()
        return next((handler for (item, _), handler in entries if item == name), None)

    def arguments(
        self, name: str, item: object, kwargs: Mapping[str, object], save: bool
    ) -> Arguments:
        """What Orbax's older calls mean: an item and keywords instead of arguments."""
        if name in self._unregistered:
            given = () if item is None and not save else (item,)
            return Positional(given, dict(kwargs))
        handler = self._registered(name)
        if handler is None:
            handler = ocp.StandardCheckpointHandler if save else ocp.PyTreeCheckpointHandler
        cls = checkpoint_args.get_registered_args_cls(handler)[not save]
        given = () if item is None and not save else (item,)
        return cls(*given, **kwargs)

    def check(self, items: PyTree, args: object) -> None:
        """Looks whether the arguments of a manager's `save` fit together, and these handlers.

        Raises:
            ValueError: they do not, or there is nothing to save.
        """
        if isinstance(items, ocp.args.CheckpointArgs):
            raise ValueError(f"give it by name: args=ocp.args.{type(items).__qualname__}(…)")
        if items is None and args is None:
            raise ValueError("there is nothing to save: give a tree, or `args`")
        if args is None:
            if self.single is None:
                self.single = True
            return
        if not isinstance(args, ocp.args.CheckpointArgs):
            raise ValueError(f"args is a {type(args).__qualname__}, and none of `ocp.args`")
        composite = isinstance(args, ocp.args.Composite)
        if self.single is None:
            self.single = not composite
        if composite and not len(args):
            raise ValueError("there is nothing to save: `Composite` without items")
        if composite and self.single:
            raise ValueError(
                "Cannot provide `args` of type `Composite`: this manager saves a single object"
            )
        if not composite and not self.single:
            raise ValueError("Must provide `args` of type `Composite`: this manager saves items")

    def to_save(
        self,
        items: PyTree,
        kwargs: Mapping[str, Any],
        args: ocp.args.CheckpointArgs | None,
    ) -> dict[str, Arguments]:
        """{item name: arguments to save by} for arguments of a manager's `save` that fit."""
        if args is not None:
            return (
                {DEFAULT_ITEM: args}
                if self.single
                else dict(cast(ocp.args.Composite, args).items())
            )
        if self.single:
            return {DEFAULT_ITEM: self.arguments(DEFAULT_ITEM, items, kwargs, save=True)}
        return {
            name: self.arguments(name, item, kwargs.get(name) or {}, save=True)
            for name, item in items.items()
        }

    def to_restore(self, items: PyTree, kwargs: Mapping[str, Any]) -> Arguments:
        """What Orbax's oldest calls of a manager's `restore` mean, as arguments."""
        if self.single is not False:
            return self.arguments(DEFAULT_ITEM, items, kwargs, save=False)
        items = items or {}
        named = {
            name: self.arguments(name, items.get(name), kwargs.get(name) or {}, save=False)
            for name in {**items, **kwargs}
        }
        return ocp.args.Composite(**named)

    def close(self) -> None:
        """Closes the handlers."""
        entries = self._registry.get_all_entries().values()
        for handler in {id(handler): handler for handler in entries}.values():
            handler.close()
        for handler in (*self._unregistered.values(), *self._global.values()):
            handler.close()


def _subclasses(cls: type[ocp.CheckpointHandler]) -> dict[str, type[ocp.CheckpointHandler]]:
    """The classes of handlers that are imported, by the name that Orbax gives them.

    A class with `signs_as_another` restores nothing, and is not the one that it names.
    """
    found = {}
    for sub in cls.__subclasses__():
        if not getattr(sub, "signs_as_another", False):
            found[sub.typestr()] = sub
            found.update(_subclasses(sub))
    return found


def name_of(handler: ocp.CheckpointHandler) -> str:
    """What Orbax calls the class of a handler."""
    cls = type(handler)
    typestr = getattr(cls, "typestr", None)
    return typestr() if typestr is not None else f"{cls.__module__}.{cls.__qualname__}"


def default_arguments(handler: ocp.CheckpointHandler) -> Arguments:
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

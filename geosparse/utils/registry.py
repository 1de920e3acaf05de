"""Named things that other packages can add to: built-in ones by a list of modules, others by entry points."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from ..errors import GeosparseError, did_you_mean

Entry = TypeVar("Entry")


class Registry(Mapping[str, Entry], Generic[Entry]):
    """Name -> entry; nothing is imported before it is asked for, so that naming all entries costs nothing."""

    def __init__(
        self, kind: str, home: str, built_in: Sequence[str], group: str, adopt: Callable[[str, object], Entry]
    ) -> None:
        """Describe the registry.

        Args:
            kind: What an entry is called in error messages, e.g. "policy".
            home: The package whose module NAME ("_" for "+") holds the built-in entry as an attribute of that name.
            built_in: The built-in names, in the order in which they are listed.
            group: The entry-point group by which other packages add entries.
            adopt: From a name and what a module or an entry point holds to the entry; raises GeosparseError where
                that is none.
        """
        self.kind = kind
        self.built_in = tuple(built_in)
        self.group = group
        self._home = home
        self._adopt = adopt
        self._loaded: dict[str, Entry] = {}
        self._own: list[str] = []  # added in this process, behind all others: places in `names` stay
        self._names: tuple[str, ...] | None = None

    @cached_property
    def added(self) -> dict[str, EntryPoint]:
        """The entry points of other packages, by name.

        Raises:
            GeosparseError: A name is taken already.
        """
        points: dict[str, EntryPoint] = {}
        for point in entry_points(group=self.group):
            if point.name in self.built_in or (point.name in points and points[point.name].value != point.value):
                raise GeosparseError(
                    f"The {self.kind} {point.name!r} of {_origin(point)} has a name that is taken already: rename its "
                    f"entry point in the group {self.group!r}, or uninstall that package."
                )
            points[point.name] = point
        return dict(sorted(points.items()))

    @property
    def names(self) -> tuple[str, ...]:
        """All names in the order in which they are listed: entries in tables of numbers are places in it."""
        if self._names is None:
            self._names = tuple(self)
        return self._names

    def add(self, name: str, content: object) -> None:
        """Add an entry for the rest of this process: for scripts and notebooks.

        Args:
            name: By which users ask for it.
            content: What an entry point would name.

        Raises:
            GeosparseError: The name is taken, or the content is none of this kind.
        """
        if name in self:
            raise GeosparseError(f"There is a {self.kind} {name!r} already: choose another name.")
        self._loaded[name] = self._adopt(name, content)
        self._own.append(name)
        self._names = None

    def check(self, name: str) -> None:
        """Raise GeosparseError, with the nearest names, unless there is an entry `name`."""
        if name not in self:
            raise GeosparseError(f"Unknown {self.kind} {name!r}: {did_you_mean(name, self)}")

    def __getitem__(self, name: str) -> Entry:
        """The entry `name`, imported when first asked for; raises KeyError where there is none."""
        if name not in self._loaded:
            if name in self.built_in:
                word = name.replace("+", "_")
                content: object = getattr(import_module(f"{self._home}.{word}"), word)
            else:
                content = self._load(self.added[name])
            self._loaded[name] = self._adopt(name, content)
        return self._loaded[name]

    def _load(self, point: EntryPoint) -> object:
        try:
            return point.load()
        except Exception as error:
            raise GeosparseError(
                f"The {self.kind} {point.name!r} of {_origin(point)} cannot be imported from {point.value!r} "
                f"({type(error).__name__}: {error}): mend or uninstall that package."
            ) from error

    def __contains__(self, name: object) -> bool:
        return name in self.built_in or name in self._own or name in self.added

    def __iter__(self) -> Iterator[str]:
        yield from self.built_in
        yield from self.added
        yield from self._own

    def __len__(self) -> int:
        return len(self.built_in) + len(self.added) + len(self._own)

    def origin(self, name: str) -> str | None:
        """The package that adds the entry `name`, in words; None for a built-in one."""
        return _origin(self.added[name]) if name in self.added else None


def _origin(point: EntryPoint) -> str:
    """The package that brings an entry point."""
    return f"the package {point.dist.name}" if point.dist is not None else point.value

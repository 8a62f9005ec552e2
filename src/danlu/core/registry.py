"""One lazy registry for every plug-in kind: stages, formats, templates, rewards, exporters, tasks."""

from collections.abc import Callable, Iterator
from importlib import import_module
from pkgutil import iter_modules
from typing import Generic, TypeVar

from danlu.core.errors import ConfigError, did_you_mean

T = TypeVar("T")


class Registry(Generic[T]):
    """Names mapped to implementations; the modules of `package` are imported on the first look-up."""

    def __init__(self, kind: str, package: str) -> None:
        self.kind, self._package = kind, package
        self._items: dict[str, T] = {}
        self._loaded = False

    def register(self, *names: str) -> Callable[[T], T]:
        """Decorate an implementation: `@STAGES.register("dpo")`; further names are aliases."""

        def add(item: T) -> T:
            for name in names:
                if name in self._items:
                    raise ValueError(f"{self.kind} {name!r} is registered twice: {self._items[name]} and {item}")
                self._items[name] = item
            return item

        return add

    def add(self, item: T, *names: str) -> T:
        """Register a value that is not a class or function."""
        return self.register(*names)(item)

    def __getitem__(self, name: str) -> T:
        self._load()
        if name not in self._items:
            raise ConfigError(f'unknown {self.kind} "{name}"', fix=did_you_mean(name, self._items))
        return self._items[name]

    def __contains__(self, name: object) -> bool:
        self._load()
        return name in self._items

    def __iter__(self) -> Iterator[str]:
        self._load()
        return iter(sorted(self._items))

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        for module in iter_modules(import_module(self._package).__path__):
            import_module(f"{self._package}.{module.name}")

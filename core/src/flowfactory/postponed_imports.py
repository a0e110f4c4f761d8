"""Importing a large library without those that it imports for what is not asked of it here.

diffusers imports transformers, peft and SciPy at the top of its modules, and peft bitsandbytes, which compiles kernels as it is
imported. Together they take several seconds and hundreds of megabytes, and most starts of a run call none of them.
"""

from __future__ import annotations

import gc
import math
import operator
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import FrameType, FunctionType, ModuleType
from typing import Any


@contextmanager
def without_collections() -> Iterator[None]:
    """Within it no garbage is looked for: an import makes a million objects that stay, and a fifth of its time went there."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@contextmanager
def postponed_imports(*packages: str, importers: Collection[str] = ()) -> Iterator[None]:
    """Within it ``packages`` are imported by name alone, and in truth as soon as something of theirs is used, then or later.

    Errors are never postponed: the interpreter compares what is raised with the class itself.

    Nothing is an instance of a class whose package nobody has imported, so that asking for that imports nothing. A package
    that is imported already is left as it is, and one that is not installed is not found. Afterwards, whoever imports one of
    them gets it as ever.

    Whatever is done with what stands in for them is done with the real thing, but for asking for its type or its identity, so
    that what goes wrong within may go right without. Names that are not there are told when they are used. With
    ``importers``, packages that are written for it, nothing is postponed for anybody else: what they take is the real thing.
    """
    finder = _Finder(packages, importers)
    sys.meta_path.insert(0, finder)
    try:
        with without_collections():
            yield
    finally:
        sys.meta_path.remove(finder)
        _forget_stand_ins()


def settle_imports(library: str, package: str) -> None:
    """Put what modules of ``library`` postponed of ``package`` into its place, for who looks at classes without using them."""
    owners = [module for name, module in list(sys.modules.items()) if name.split(".")[0] == library]
    for owner in owners:
        for name, value in list(vars(owner).items()):
            if _is_postponed(value, package):
                setattr(owner, name, value.real())
            elif isinstance(value, type) and value.__module__ == owner.__name__:
                for function in vars(value).values():
                    _settle_annotations(function, package)


def _settle_annotations(function: object, package: str) -> None:
    if isinstance(function, FunctionType):
        for name, value in function.__annotations__.items():
            if _is_postponed(value, package):
                function.__annotations__[name] = value.real()


def _is_postponed(value: object, package: str) -> bool:
    # by its type: to ask a lazy module of the library for its __class__ is to look at it
    if type(value) in (_Postponed, _Either):
        return value._module.split(".")[0] == package  # type: ignore[attr-defined, no-any-return]
    return type(value) is _StandIn and value.__name__.split(".")[0] == package


class _StandIn(ModuleType):
    """A module that was not executed. What is taken from it is postponed too."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name not in ("__version__", "__all__"):
            raise AttributeError(name)
        importers = getattr(self.__loader__, "importers", ())
        if name.endswith("Error") or _is_foreign(sys._getframe(1), importers):
            return getattr(self.real(), name)
        return _Postponed(importers, self.__name__, name)

    def __setattr__(self, name: str, value: object) -> None:
        if name.startswith("__") or isinstance(value, ModuleType):  # as the import system does
            super().__setattr__(name, value)
        else:
            setattr(self.real(), name, value)

    def __dir__(self) -> list[str]:
        return dir(self.real())

    def real(self) -> ModuleType:
        return _import(self.__name__)


def _is_foreign(frame: FrameType, importers: Collection[str]) -> bool:
    # the import system looks first whether the name is that of a submodule
    importer = frame.f_globals.get("__name__", "").split(".")[0]
    return bool(importers) and importer not in (*importers, "importlib")


class _Postponed:
    """Something of a module that was not executed: of the path ``names`` within it."""

    def __init__(self, importers: Collection[str], module: str, *names: str) -> None:
        self.__dict__.update(_importers=importers, _module=module, _names=names)

    def real(self) -> Any:
        try:
            found: Any = _import(self._module)
        except ImportError as error:
            raise ImportError(f"{self._module}, which is needed now, cannot be imported: {error}") from error
        for place, name in enumerate(self._names):
            try:
                found = getattr(found, name)
            except AttributeError:  # a submodule that its package does not import itself
                found = _import(".".join((self._module, *self._names[: place + 1])))
        return found

    @property
    def __name__(self) -> str:
        return str(self._names[-1])

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name.endswith("Error") or _is_foreign(sys._getframe(1), self._importers):
            return getattr(self.real(), name)
        return _Postponed(self._importers, self._module, *self._names, name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self.real(), name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self.real(), name)

    def __call__(self, *given: Any, **options: Any) -> Any:
        return self.real()(*map(_real, given), **{name: _real(value) for name, value in options.items()})

    def __mro_entries__(self, bases: Sequence[object]) -> tuple[Any, ...]:
        return (self.real(),)

    def __instancecheck__(self, instance: object) -> bool:
        if type(instance) is _Postponed:
            return isinstance(instance.real(), self.real())
        return _is_imported(self._module.split(".")[0]) and isinstance(instance, self.real())

    def __subclasscheck__(self, kind: Any) -> bool:
        if type(kind) is _Postponed:
            return issubclass(kind.real(), self.real())
        return _is_imported(self._module.split(".")[0]) and issubclass(kind, self.real())

    def __eq__(self, other: object) -> bool:
        if type(other) is _Postponed and (self._module, self._names) == (other._module, other._names):
            return True
        return bool(self.real() == _real(other))

    def __hash__(self) -> int:
        return hash((self._module, self._names))  # typing keeps what it has made of classes by their hash

    def __or__(self, other: Any) -> Any:
        if type(other) is _Postponed:
            return _Either(self, other)
        return self.real() | _real(other)


class _Either(_Postponed):
    """``left | right`` of two that are postponed: annotations outside strings say so of classes, and nobody reads them."""

    def __init__(self, left: _Postponed, right: _Postponed) -> None:
        super().__init__(left._importers, left._module, *left._names)
        self.__dict__["_right"] = right

    def real(self) -> Any:
        return super().real() | self._right.real()

    @property
    def __name__(self) -> str:
        return str(self.real().__name__)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real(), name)

    def __eq__(self, other: object) -> bool:
        return bool(self.real() == _real(other))

    def __or__(self, other: Any) -> Any:
        return self.real() | _real(other)

    __hash__ = _Postponed.__hash__


def _real(value: Any) -> Any:
    return value.real() if type(value) in (_Postponed, _Either, _StandIn) else value


def _on_the_real(method: str, act: Callable[..., Any]) -> None:
    def acting(self: _Postponed, *given: Any) -> Any:
        return act(self.real(), *map(_real, given))

    setattr(_Postponed, method, acting)


def _reflected(act: Callable[..., Any]) -> Callable[..., Any]:
    return lambda right, left: act(left, right)


for _name in ("add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "pow", "lshift", "rshift", "and", "xor"):
    _on_the_real(f"__{_name}__", getattr(operator, f"__{_name}__"))
    _on_the_real(f"__r{_name}__", _reflected(getattr(operator, f"__{_name}__")))
_on_the_real("__ror__", _reflected(operator.or_))
_on_the_real("__divmod__", divmod)
_on_the_real("__rdivmod__", _reflected(divmod))
for _name in ("lt", "le", "gt", "ge", "neg", "pos", "abs", "invert", "index", "contains", "getitem", "setitem", "delitem"):
    _on_the_real(f"__{_name}__", getattr(operator, f"__{_name}__"))
for _act in (bool, int, float, complex, bytes, str, repr, format, len, iter, next, reversed, round, dir):
    _on_the_real(f"__{_act.__name__}__", _act)
for _name in ("trunc", "floor", "ceil"):
    _on_the_real(f"__{_name}__", getattr(math, _name))
_on_the_real("__enter__", lambda real: type(real).__enter__(real))
_on_the_real("__exit__", lambda real, *error: type(real).__exit__(real, *error))


class _Finder(MetaPathFinder, Loader):
    """Finds the ``packages``, and what is within them, and executes nothing."""

    def __init__(self, packages: Sequence[str], importers: Collection[str]) -> None:
        self._packages, self.importers = frozenset(packages), importers

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        meant = next((package for package in self._packages if f"{name}.".startswith(f"{package}.")), None)
        if meant is None or _is_imported(meant):
            return None
        others = (finder.find_spec(name, path, target) for finder in sys.meta_path if not isinstance(finder, _Finder))
        real = next((spec for spec in others if spec is not None), None)
        if real is None:
            return None
        spec = ModuleSpec(name, self, origin=real.origin)
        spec.submodule_search_locations = real.submodule_search_locations
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ and module.__spec__.origin:
            module.__file__ = module.__spec__.origin


def _import(name: str) -> ModuleType:
    """The module itself, with what stands in for it out of the way."""
    _forget_stand_ins(name.split(".")[0])
    finders = [finder for finder in sys.meta_path if isinstance(finder, _Finder)]
    for finder in finders:
        sys.meta_path.remove(finder)
    try:
        return import_module(name)
    finally:
        sys.meta_path[:0] = finders


def _forget_stand_ins(root: str | None = None) -> None:
    for name, module in list(sys.modules.items()):
        if isinstance(module, _StandIn) and root in (None, name.split(".")[0]):
            del sys.modules[name]


def _is_imported(name: str) -> bool:
    module = sys.modules.get(name)
    return module is not None and not isinstance(module, _StandIn)

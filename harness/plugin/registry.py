"""Finds plugins, records the faults of each, and looks components up by name.

pluggy's own entry-point loader drops the second distribution that uses a taken entry-point name, lets one
failing import abort all loading, and accepts misspelled hooks; this loader reports each of them per plugin.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import re
import sys
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar

import pluggy

from ..domain import API_VERSION
from ..errors import PluginError, UnknownName, UsageError
from ..plugin import hookspecs
from .specs import AttackSpec, BenchmarkSpec, ExecutorSpec, Kind, MethodSpec, ModelSpec, ReporterSpec, Spec

GROUP = "unlearnbench"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
"""Names of components: they become names of files, columns of tables and parts of addresses."""


HOOKS = frozenset(name for name in vars(hookspecs) if name.startswith("unlearnbench_"))
# The hooks that offer components, by the kind of component they offer.
OFFERS: Mapping[str, tuple[Kind, type[Any]]] = {
    "unlearnbench_methods": ("method", MethodSpec),
    "unlearnbench_benchmarks": ("benchmark", BenchmarkSpec),
    "unlearnbench_attacks": ("attack", AttackSpec),
    "unlearnbench_models": ("model", ModelSpec),
    "unlearnbench_executors": ("executor", ExecutorSpec),
    "unlearnbench_reporters": ("reporter", ReporterSpec),
}
S = TypeVar("S", bound=Spec)


@dataclass(frozen=True)
class Plugin:
    """The origin of a plugin, and its fault (empty where it has none)."""

    name: str
    dist: str
    version: str
    source: str
    error: str = ""
    offers: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """What pluggy knows the plugin by."""
        return f"{self.dist}:{self.name}"


@dataclass(frozen=True)
class Component(Generic[S]):
    """A spec together with the plugin that offers it."""

    spec: S
    plugin: Plugin

    @property
    def qualified(self) -> str:
        """``dist/name``, unique even where two distributions offer the same name."""
        return f"{self.plugin.dist}/{self.spec.name}"


class _Manager(pluggy.PluginManager):
    """Accepts functions by their prefix alone, as pytest does, and by any name where ``hookimpl`` marks them.

    An observer that raises is logged, and stops neither the run nor other observers.
    """

    log: Callable[[str], None] = print

    def parse_hookimpl_opts(self, plugin: Any, name: str) -> Any:
        options: Any = super().parse_hookimpl_opts(plugin, name)
        if options is None and name.startswith("unlearnbench_") and callable(getattr(plugin, name, None)):
            options = dict.fromkeys(("wrapper", "hookwrapper", "optionalhook", "tryfirst", "trylast"), False)
        return options

    def register(self, plugin: Any, name: str | None = None) -> str | None:
        key = super().register(plugin, name)
        for caller in self.get_hookcallers(plugin) or ():
            for implementation in caller.get_hookimpls():
                if implementation.plugin is plugin and caller.name not in OFFERS:
                    wraps = implementation.hookwrapper or implementation.wrapper
                    guard = self._guarded_wrapper if wraps else self._guarded
                    # pluggy has no other way to look after a call; its annotation says that nobody does.
                    implementation.function = guard(implementation.function, key, caller.name)  # type: ignore[misc]
        return key

    def complain(self, plugin: str | None, hook: str, error: Exception) -> None:
        """Log what an observer raised."""
        self.log(f"plugin {plugin}: {hook} raised {type(error).__name__}: {error}")

    def _guarded(self, function: Callable[..., Any], plugin: str | None, hook: str) -> Callable[..., Any]:
        def observe(*facts: Any) -> None:
            try:
                function(*facts)
            except Exception as error:  # noqa: BLE001 - a stranger's observer may raise anything
                self.complain(plugin, hook, error)

        return observe

    def _guarded_wrapper(self, function: Callable[..., Any], plugin: str | None, hook: str) -> Callable[..., Any]:
        def observe(*facts: Any) -> Generator[None, Any, Any]:
            try:
                wrapper = function(*facts)
                next(wrapper)
            except Exception as error:  # noqa: BLE001 - as above
                self.complain(plugin, hook, error)
                return (yield)
            outcome = yield
            try:
                wrapper.send(outcome)
            except StopIteration as end:
                return end.value
            except Exception as error:  # noqa: BLE001 - as above
                self.complain(plugin, hook, error)
            return outcome

        return observe


def _manager() -> _Manager:
    manager = _Manager("unlearnbench")
    manager.add_hookspecs(hookspecs)
    return manager


@dataclass
class Registry:
    """Every plugin found, and every component that plugins without a fault offer."""

    plugins: list[Plugin] = field(default_factory=list)
    components: list[Component[Any]] = field(default_factory=list)
    manager: _Manager = field(default_factory=_manager)

    def of_kind(self, kind: Kind) -> list[Component[Any]]:
        """All components of a kind, in the order in which their plugins offer them."""
        return [component for component in self.components if component.spec.kind == kind]

    def find(self, kind: Kind, name: str) -> Component[Any]:
        """The component called ``name`` or ``dist/name``.

        Raises:
            UnknownName: no plugin offers it; names the nearest, and the plugins that failed to load.
            UsageError: several distributions offer it under this short name.
        """
        offered = self.of_kind(kind)
        matches = [c for c in offered if name in (c.spec.name, c.qualified)]
        if len(matches) > 1:
            choices = " or ".join(sorted(c.qualified for c in matches))
            raise UsageError(f"{kind} {name!r} is offered more than once; write {choices}")
        if matches:
            return matches[0]
        dist = name.partition("/")[0] if "/" in name else ""
        for plugin in self.broken:
            if dist == plugin.dist:
                raise PluginError(plugin.name, f"does not load, so {kind} {name!r} is missing: {plugin.error}")
        hint = "".join(f"; plugin {p.name} ({p.dist}) did not load: {p.error}" for p in self.broken)
        raise UnknownName(kind, name, {c.spec.name for c in offered}, hint)

    @property
    def broken(self) -> list[Plugin]:
        return [plugin for plugin in self.plugins if plugin.error]

    def conflicts(self) -> dict[str, list[str]]:
        """Short names that several distributions offer, with the qualified names that tell these apart."""
        names: dict[str, list[str]] = {}
        for component in self.components:
            names.setdefault(f"{component.spec.kind} {component.spec.name}", []).append(component.qualified)
        return {name: sorted(offers) for name, offers in names.items() if len(offers) > 1}

    def notify(self, hook: str, log: Callable[[str], None], **facts: Any) -> None:
        """Tell observers as pluggy calls them; an exception of theirs is logged and stops nobody."""
        self.manager.log = log
        getattr(self.manager.hook, hook)(**facts)


def load_plugins(files: Sequence[str] = ()) -> Registry:
    """Load every entry point of the group and every given file; record each fault with its plugin.

    Raises:
        PluginError: a file that the user named does not load.
    """
    registry = Registry()
    points = metadata.entry_points(group=GROUP)
    for point in sorted(points, key=lambda p: (p.dist.name if p.dist else "", p.name)):
        dist, version = (point.dist.name, point.dist.version) if point.dist else ("unknown", "")
        _register(registry, Plugin(point.name, dist, version, point.value), point.load)
    for file in files:
        path = Path(file).resolve()
        if not path.is_file():
            raise UsageError(f"--plugin {file}: no such file")
        version = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
        _register(registry, Plugin(path.stem, path.stem, version, str(path)), partial(import_file, path))
    # Wrappers of one plugin see what others offer, so that offers are asked for when all are there.
    _collect(registry)
    sources = {str(Path(file).resolve()): file for file in files}
    for plugin in registry.broken:
        if plugin.source in sources:
            raise PluginError(sources[plugin.source], f"does not load: {plugin.error}")
    return registry


def _register(registry: Registry, plugin: Plugin, load: Callable[[], Any]) -> None:
    """Register one plugin, or record why it cannot be."""
    try:
        module = load()
        _refuse_misspelled(module)
        registry.manager.register(module, plugin.key)
    except Exception as error:  # noqa: BLE001 - a stranger's module may raise anything on import
        plugin = replace(plugin, error=_shown(error))
    registry.plugins.append(plugin)


def _collect(registry: Registry) -> None:
    """Ask every plugin for its offers; one whose offers cannot be used is unregistered and its fault recorded."""
    manager, offered = registry.manager, dict[str, list[Spec]]()
    for place, plugin in enumerate(registry.plugins):
        if plugin.error:
            continue
        try:
            specs = [spec for hook in OFFERS for spec in _offered(manager, plugin.key, hook)]
        except Exception as error:  # noqa: BLE001 - a stranger's hook may raise anything
            manager.unregister(name=plugin.key)
            registry.plugins[place] = replace(plugin, error=_shown(error))
            continue
        offered[plugin.key] = specs
        registry.plugins[place] = replace(plugin, offers=tuple(f"{spec.kind} {spec.name}" for spec in specs))
    of_key = {plugin.key: plugin for plugin in registry.plugins}
    for hook, (kind, _) in OFFERS.items():
        # pluggy keeps implementations in the order opposite to that in which it calls them.
        called = [impl.plugin_name for impl in reversed(getattr(manager.hook, hook).get_hookimpls())]
        for key in dict.fromkeys(key for key in called if key in offered):
            specs = [spec for spec in offered[key] if spec.kind == kind]
            registry.components.extend(Component(spec, of_key[key]) for spec in specs)


def _shown(error: Exception) -> str:
    text = str(error).strip().replace("\n", " ") or "no message"
    return f"{type(error).__name__}: {text}"


def _offered(manager: _Manager, key: str, hook: str) -> list[Spec]:
    """What a plugin offers by one hook, as the wrappers of all plugins let it through."""
    caller = getattr(manager.hook, hook)
    mine = [impl for impl in caller.get_hookimpls() if impl.plugin_name == key]
    if not any(not (impl.wrapper or impl.hookwrapper) for impl in mine):
        return []
    plain = {impl.plugin_name for impl in caller.get_hookimpls() if not (impl.wrapper or impl.hookwrapper)}
    others = [manager.get_plugin(name) for name in plain - {key}]
    lists = manager.subset_hook_caller(hook, remove_plugins=others)()
    specs = [spec for offers in lists for spec in _listed(offers, hook)]
    for spec in specs:
        _refuse_unusable(spec, hook)
    return specs


def _refuse_unusable(spec: Any, hook: str) -> None:
    """Raise TypeError or ValueError where a spec is not what its hook returns, or cannot be used here."""
    kind, expected = OFFERS[hook]
    if not isinstance(spec, expected):
        raise TypeError(f"{hook} returned {type(spec).__name__}, expected {expected.__name__}")
    if isinstance(spec, MethodSpec) and spec.requires.start == "retained" and not spec.reference:
        raise ValueError(f"method {spec.name} starts from the retained model, which only a reference may do")
    if not NAME.fullmatch(spec.name):
        raise ValueError(
            f"{kind} {spec.name[:80]!r} cannot be a name: letters, digits and . _ + - only, at most 64, beginning with "
            "a letter or digit"
        )
    if spec.api_version > API_VERSION:
        raise ValueError(
            f"{kind} {spec.name} needs plugin API {spec.api_version}; this unlearnbench offers {API_VERSION}"
        )


def _listed(specs: object, hook: str) -> Iterable[Any]:
    if not isinstance(specs, list | tuple):
        raise TypeError(f"{hook} returned {type(specs).__name__}, expected a list")
    return specs


def _refuse_misspelled(module: ModuleType) -> None:
    for name, value in vars(module).items():
        if name.startswith("unlearnbench_") and callable(value) and name not in HOOKS:
            near = difflib.get_close_matches(name, sorted(HOOKS), n=1, cutoff=0.0)[0]
            raise ValueError(f"unknown hook {name!r}; did you mean {near!r}?")


def import_file(path: Path) -> ModuleType:
    """Import a file under its own stem, so that ``"stem:Class"`` targets resolve in every process."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    known = sys.modules.get(path.stem)
    if known is not None:
        if getattr(known, "__file__", None) == str(path):
            return known
        raise ImportError(f"a module named {path.stem!r} is already imported; rename the file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[path.stem]
        raise
    return module

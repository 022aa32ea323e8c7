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
from collections.abc import Callable, Iterable, Mapping, Sequence
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
from .specs import BenchmarkSpec, ExecutorSpec, Kind, MethodSpec, ModelSpec, ReporterSpec, Spec

GROUP = "unlearnbench"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
"""Names of components: they become names of files, columns of tables and parts of addresses."""


HOOKS = frozenset(name for name in vars(hookspecs) if name.startswith("unlearnbench_"))
# The hooks that offer components, by the kind of component they offer.
OFFERS: Mapping[str, tuple[Kind, type[Any]]] = {
    "unlearnbench_methods": ("method", MethodSpec),
    "unlearnbench_benchmarks": ("benchmark", BenchmarkSpec),
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
    """Accepts functions by their prefix, as pytest does, and functions of any name that ``hookimpl`` marks."""

    def parse_hookimpl_opts(self, plugin: Any, name: str) -> Any:
        options: Any = super().parse_hookimpl_opts(plugin, name)
        if options is None and name.startswith("unlearnbench_") and callable(getattr(plugin, name, None)):
            options = dict.fromkeys(("wrapper", "hookwrapper", "optionalhook", "tryfirst", "trylast"), False)
        return options


def _manager() -> pluggy.PluginManager:
    manager = _Manager("unlearnbench")
    manager.add_hookspecs(hookspecs)
    return manager


@dataclass
class Registry:
    """Every plugin found, and every component that plugins without a fault offer."""

    plugins: list[Plugin] = field(default_factory=list)
    components: list[Component[Any]] = field(default_factory=list)
    manager: pluggy.PluginManager = field(default_factory=_manager)

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
            choices = " or ".join(c.qualified for c in matches)
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
        """Call the observers of a hook; logs an observer's exception and continues with the next."""
        # pluggy lists implementations in reverse order of calling.
        for implementation in reversed(getattr(self.manager.hook, hook).get_hookimpls()):
            try:
                implementation.function(**{name: facts[name] for name in implementation.argnames})
            except Exception as error:  # noqa: BLE001 - a third-party observer may raise anything
                log(f"plugin {implementation.plugin_name}: {hook} raised {type(error).__name__}: {error}")


def load_plugins(files: Sequence[str] = ()) -> Registry:
    """Load every entry point of the group and every given file; record each fault with its plugin.

    Raises:
        PluginError: a file that the user named does not load.
    """
    registry = Registry()
    points = metadata.entry_points(group=GROUP)
    for point in sorted(points, key=lambda p: (p.dist.name if p.dist else "", p.name)):
        dist, version = (point.dist.name, point.dist.version) if point.dist else ("unknown", "")
        _add(registry, Plugin(point.name, dist, version, point.value), point.load)
    for file in files:
        path = Path(file).resolve()
        if not path.is_file():
            raise UsageError(f"--plugin {file}: no such file")
        version = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
        plugin = Plugin(path.stem, path.stem, version, str(path))
        _add(registry, plugin, partial(import_file, path))
        if registry.plugins[-1].error:
            raise PluginError(file, f"does not load: {registry.plugins[-1].error}")
    return registry


def _add(registry: Registry, plugin: Plugin, load: Callable[[], Any]) -> None:
    """Register one plugin, or record its fault."""
    key = f"{plugin.dist}:{plugin.name}"
    try:
        module = load()
        _refuse_misspelled(module)
        registry.manager.register(module, key)
        specs = _offered(registry.manager, module)
    except Exception as error:  # noqa: BLE001 - a third-party module may raise anything on import
        if registry.manager.has_plugin(key):
            registry.manager.unregister(name=key)
        text = str(error).strip().replace("\n", " ") or "no message"
        registry.plugins.append(replace(plugin, error=f"{type(error).__name__}: {text}"))
        return
    plugin = replace(plugin, offers=tuple(f"{spec.kind} {spec.name}" for spec in specs))
    registry.plugins.append(plugin)
    registry.components.extend(Component(spec, plugin) for spec in specs)


def _offered(manager: pluggy.PluginManager, module: ModuleType) -> list[Spec]:
    """The specs that a registered module offers, whatever its functions' names (``specname``)."""
    specs: list[Spec] = []
    for hook, (kind, expected) in OFFERS.items():
        offers = [impl.function for impl in getattr(manager.hook, hook).get_hookimpls() if impl.plugin is module]
        for spec in (spec for offer in offers for spec in _listed(offer(), hook)):
            if not isinstance(spec, expected):
                raise TypeError(f"{hook} returned {type(spec).__name__}, expected {expected.__name__}")
            if isinstance(spec, MethodSpec) and spec.requires.start == "retained" and not spec.reference:
                raise ValueError(f"method {spec.name} starts from the retained model, which only a reference may do")
            if not NAME.fullmatch(spec.name):
                raise ValueError(
                    f"{kind} {spec.name[:80]!r} cannot be a name: letters, digits and . _ + - only, at most 64, "
                    "beginning with a letter or digit"
                )
            if spec.api_version > API_VERSION:
                raise ValueError(
                    f"{kind} {spec.name} needs plugin API {spec.api_version}; this unlearnbench offers {API_VERSION}"
                )
            specs.append(spec)
    return specs


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

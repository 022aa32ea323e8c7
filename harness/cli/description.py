"""Describes a component for ``show``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from ..errors import UnknownName, UsageError
from ..plugin.parameters import Parameter
from ..plugin.registry import Component, Registry
from ..plugin.specs import AttackSpec, BenchmarkSpec, MethodSpec, ModelSpec


def described(registry: Registry, name: str) -> dict[str, Any]:
    """Facts about the method, benchmark, attack or model of that name.

    Raises:
        UnknownName: no component has this name.
        UsageError: several components have it.
    """
    matches = [c for c in registry.components if name in (c.spec.name, c.qualified)]
    if not matches:
        shown = {c.spec.name for c in registry.components if c.spec.kind in ("method", "benchmark", "attack", "model")}
        raise UnknownName("method, benchmark, attack or model", name, shown)
    if len(matches) > 1:
        choices = " or ".join(f"{c.spec.kind} {c.qualified}" for c in matches)
        raise UsageError(f"{name!r} is several things: {choices}; write dist/name")
    return _facts(matches[0])


def _facts(component: Component[Any]) -> dict[str, Any]:
    spec = component.spec
    facts: dict[str, Any] = {
        "kind": spec.kind,
        "name": spec.name,
        "qualified": component.qualified,
        "summary": spec.summary,
        "plugin": asdict(component.plugin),
        "citation": getattr(spec, "citation", ""),
    }
    if isinstance(spec, MethodSpec):
        facts |= {"needs": _needs(spec), "editions": list(spec.editions), "fixed": dict(spec.fixed)}
    if isinstance(spec, AttackSpec):
        facts |= {
            "touches": asdict(spec.requires),
            "fixed": dict(spec.fixed),
            "packages": list(spec.packages),
            "installed_by": spec.extra,
        }
    if isinstance(spec, BenchmarkSpec):
        facts |= {
            "editions": list(spec.editions),
            "data": {
                "hub": spec.data.hub,
                "licence": spec.data.licence,
                "tables": list(spec.data.tables),
                "generated": bool(spec.data.generator),
            },
            "metrics": [
                {"name": m.name, "label": m.label, "better": m.better, "definition": m.definition, "source": m.source}
                for m in spec.metrics
            ],
            "log_formats": list(spec.log_readers),
        }
    if isinstance(spec, ModelSpec):
        facts |= {key: value for key, value in asdict(spec).items() if value and key not in ("name", "summary")}
    else:
        facts["parameters"] = [_parameter(parameter) for parameter in spec.parameters]
    return facts


def _needs(spec: MethodSpec) -> dict[str, Any]:
    requires = spec.requires
    return {
        "forget": not spec.reference,
        "retain": requires.retain,
        "template": requires.template,
        "original": requires.original,
    }


def _parameter(parameter: Parameter) -> dict[str, Any]:
    return {
        "name": parameter.name,
        "type": parameter.type.__name__,
        "default": parameter.default,
        "range": parameter.range,
        "summary": parameter.summary,
    }


def description_lines(facts: dict[str, Any]) -> list[str]:
    """The facts as lines of text."""
    plugin = facts["plugin"]
    lines = [
        f"{facts['kind']} {facts['name']}",
        f"  {facts['summary']}",
        f"  from {plugin['dist']} {plugin['version']}",
    ]
    if facts["citation"]:
        lines.append(f"  source: {facts['citation']}")
    if "needs" in facts:
        original = {"none": "no", "logprobs": "its log-probabilities, computed once", "model": "a frozen copy"}
        needs = facts["needs"]
        words = [f"{part} {'yes' if needs[part] else 'no'}" for part in ("forget", "retain", "template")]
        lines.append(f"  needs: {', '.join(words)}, original model {original[needs['original']]}")
    if "touches" in facts:
        touched = [part for part, allowed in facts["touches"].items() if allowed]
        lines.append(f"  touches: {', '.join(touched) or 'the model and the questions alone'}")
    if facts.get("packages"):
        lines.append(f"  needs: {', '.join(facts['packages'])} (pip install '{facts['installed_by']}')")
    if facts.get("editions"):
        lines.append(f"  editions: {', '.join(facts['editions'])}")
    if "data" in facts:
        data = facts["data"]
        lines.append(f"  data: {data['hub'] or 'no hub data set'}{', or generated' if data['generated'] else ''}")
        lines += [
            "  metrics:",
            *(f"    {m['name']} ({m['better']} is better): {m['definition']}" for m in facts["metrics"]),
        ]
    if facts.get("parameters"):
        lines.append("  parameters:")
        for p in facts["parameters"]:
            limits = f", {p['range']}" if p["range"] else ""
            lines.append(f"    {p['name']} = {p['default']!r} ({p['type']}{limits}): {p['summary']}")
    shown = {"kind", "name", "qualified", "summary", "plugin", "citation", "api_version"}
    if facts["kind"] == "model":
        lines += [f"  {key} = {value}" for key, value in facts.items() if key not in shown]
    return lines

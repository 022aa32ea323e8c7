"""Croissant (MLCommons, version 1.0): the site's CSV files described so that machines read their columns."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

BOUNDED = ("score", "forgetting", "utility", "robust", "area")
NUMERIC = frozenset(
    ["value", "low", "high", "sweep_seconds", *(f"{name}{end}" for name in BOUNDED for end in ("", "_low", "_high"))]
)
WHOLE = frozenset(("seed", "repeat", "n"))
CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "dct": "http://purl.org/dc/terms/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "equivalentProperty": "cr:equivalentProperty",
    "samplingRate": "cr:samplingRate",
    "conformsTo": "dct:conformsTo",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}


def croissant(tables: Mapping[str, tuple[str, Sequence[str]]], licences: Sequence[str]) -> str:
    """The description of CSV files beside it.

    Args:
        tables: by file name, the SHA-256 of the file and its columns.
        licences: those that the sources of the rows name.
    """
    content = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": "unlearnbench-results",
        "description": "Scores and places of methods that make language models forget, a line for each metric of each "
        "cell and for each row of a table.",
        "url": "https://pypi.org/project/unlearnbench/",
        "license": " / ".join(licences) or "unknown",
        "creator": {"@type": "sc:Organization", "name": "unlearnbench"},
        "version": "1.0.0",
        "distribution": [_file(name, sha256) for name, (sha256, _) in tables.items()],
        "recordSet": [_record_set(name, columns) for name, (_, columns) in tables.items()],
    }
    return json.dumps(content, indent=1) + "\n"


def _file(name: str, sha256: str) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": name,
        "name": name,
        "contentUrl": name,
        "encodingFormat": "text/csv",
        "sha256": sha256,
    }


def _record_set(name: str, columns: Sequence[str]) -> dict[str, Any]:
    own = name.removesuffix(".csv")
    return {
        "@type": "cr:RecordSet",
        "@id": own,
        "name": own,
        "field": [
            {
                "@type": "cr:Field",
                "@id": f"{own}/{column}",
                "name": column,
                "dataType": "sc:Float" if column in NUMERIC else "sc:Integer" if column in WHOLE else "sc:Text",
                "source": {"fileObject": {"@id": name}, "extract": {"column": column}},
            }
            for column in columns
        ],
    }

"""The catalogue as linked data: JSON-LD in the W3C's Data Catalog Vocabulary, DCAT 3 (https://www.w3.org/TR/vocab-dcat-3/).

Its context stands in it, so nothing is fetched to read it. It is written data set by data set.
"""

import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

from clachan_lake.catalogue.entry import as_text, attributes, sources, text
from clachan_lake.catalogue.search import let_go, records
from clachan_lake.local import LocalLake

CONTEXT = {
    "dcat": "http://www.w3.org/ns/dcat#",
    "dct": "http://purl.org/dc/terms/",
    "foaf": "http://xmlns.com/foaf/0.1/",
    "prov": "http://www.w3.org/ns/prov#",
    "rdfs": "http://www.w3.org/2000/01/rdf-schema#",
    "xsd": "http://www.w3.org/2001/XMLSchema#",
    "schema": "https://schema.org/",
}
MEDIA_TYPE = "https://www.iana.org/assignments/media-types/application/octet-stream"
IRI = re.compile(r"https?://[!#-;=?-\[\]_a-z~]+")


def export(lake: LocalLake, base: str, title: str = "Data sets of the lake") -> Iterator[str]:
    """Parts of one JSON document. `base` is the service's URL with a slash at the end: what the data sets' own are made
    of."""
    head = {"@context": CONTEXT, "@id": f"{base}catalogue.jsonld", "@type": "dcat:Catalog", "dct:title": title}
    yield json.dumps(head, ensure_ascii=False)[:-1] + ', "dcat:dataset": ['
    for number, (_name, kind, record) in enumerate(records(lake)):
        yield (",\n" if number else "\n") + json.dumps(data_set(kind, record, base), ensure_ascii=False)
        let_go(record)
    yield "\n]}\n"


def data_set(kind: str, record: Any, base: str) -> dict[str, Any]:
    """A dcat:Dataset with its distribution."""
    name, attrs = record.name, attributes(record)
    modified = record.modified if kind == "stream" else record.state.modified
    found: dict[str, Any] = {
        "@id": identity(base, kind, name),
        "@type": "dcat:Dataset",
        "dct:identifier": f"{kind}/{name}",
        "dct:title": text(attrs, "title", None) or name,
        "dct:description": text(attrs, "description", None),
        "dct:issued": _time(record.created),
        "dct:modified": _time(modified),
        "dcat:keyword": [one for one in attrs["tags"] if isinstance(one, str)]
        if isinstance(attrs.get("tags"), list)
        else [],
        "dcat:landingPage": {"@id": page(base, kind, name)},
        "dct:license": _license(text(attrs, "license", None)),
        "dct:publisher": _agent(text(attrs, "owner", None)),
        "schema:variableMeasured": _units(text(attrs, "units", None)),
        "prov:wasDerivedFrom": [{"@id": identity(base, one["kind"], one["name"])} for one in sources(attrs)],
        "dcat:distribution": _distribution(base, kind, name, record),
    }
    return {key: value for key, value in found.items() if value not in (None, "", [])}


def page(base: str, kind: str, name: str) -> str:
    return f"{base}page?{urlencode({'kind': kind, 'name': name})}"


def identity(base: str, kind: str, name: str) -> str:
    return f"{page(base, kind, name)}#data"


def _distribution(base: str, kind: str, name: str, record: Any) -> dict[str, Any]:
    query = {"name": name, "npy": 1} if kind == "array" else {"name": name}
    found: dict[str, Any] = {
        "@id": f"{page(base, kind, name)}#download",
        "@type": "dcat:Distribution",
        "dct:title": "NumPy's .npy" if kind == "array" else "bytes as they came",
        "dcat:accessURL": {"@id": page(base, kind, name)},
        "dcat:downloadURL": {"@id": f"{base}{kind}s/data?{urlencode(query)}"},
        "dcat:mediaType": {"@id": MEDIA_TYPE},
    }
    if kind == "stream":
        found["dcat:byteSize"] = {"@value": str(record.size - record.start), "@type": "xsd:nonNegativeInteger"}
    return found


def _time(milliseconds: int) -> dict[str, str]:
    return {"@value": as_text(milliseconds), "@type": "xsd:dateTime"}


def _license(value: str) -> dict[str, Any] | None:
    """A link where it is one; else a document that has this name."""
    if IRI.fullmatch(value):
        return {"@id": value}
    return {"@type": "dct:LicenseDocument", "rdfs:label": value} if value else None


def _agent(value: str) -> dict[str, Any] | None:
    return {"@type": "foaf:Agent", "foaf:name": value} if value else None


def _units(value: str) -> dict[str, Any] | None:
    return {"@type": "schema:PropertyValue", "schema:unitText": value} if value else None

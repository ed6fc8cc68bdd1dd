"""The catalogue: what is known of data sets, finding them, and the export that other catalogues read."""

import json
from datetime import UTC, datetime

import numpy as np
import pytest
from clachan_lake.catalogue import entry
from clachan_lake.catalogue.dcat import export
from clachan_lake.catalogue.search import SCANNED, CursorError, everything, search
from clachan_lake.errors import MissingError
from clachan_lake.local import LocalLake
from rdflib import DCAT, DCTERMS, FOAF, PROV, RDF, RDFS, SDO, Graph, Literal, URIRef

BASE = "https://lake.example/"
pytestmark = pytest.mark.filterwarnings("ignore:ConjunctiveGraph is deprecated:DeprecationWarning")  # rdflib's own
HOSTILE = "\"><script>alert('1')</script> {{7*7}} ../../etc/passwd"


def fill(lake: LocalLake) -> None:
    with lake.transaction():
        wind = lake.arrays.create("sites/north/wind", (0, 2), "f4", {"title": "Wind", "tags": ["weather", "Mast"]})
        wind.units = "m/s"
        wind.append(np.zeros((10, 2)))
        wind.attrs.update(
            {"source": "sites/north/raw", "transformation": "csv", "owner": "Met", "license": "https://example.org/by"}
        )
        lake.arrays.create("~minmax/sites/north/wind/256", (0, 2, 2), "f4")
        raw = lake.streams.create("sites/north/raw", "csv", {"description": "Messwerte, ÄRGERLICH", "tags": "no list"})
        raw.append(b"1,2\n" * 5, final=True)
        lake.streams.create(
            HOSTILE, "raw", {"title": HOSTILE, "license": HOSTILE, "owner": HOSTILE, "tags": [HOSTILE, 7]}
        )
        lake.streams.create("été", "raw", {"source": "gone", "source_kind": "nonsense"})


def found(lake: LocalLake, *asked: str, **more: object) -> list[str]:
    items, cursor = search(lake, *asked, **more)
    assert cursor is None
    return [f"{one['kind']} {one['name']}" for one in items]


def test_every_word_is_somewhere(lake: LocalLake) -> None:
    fill(lake)
    everything_there = [f"stream {HOSTILE}", "stream sites/north/raw", "array sites/north/wind", "stream été"]
    assert found(lake) == everything_there
    assert found(lake, "NORTH") == everything_there[1:3]
    assert found(lake, "ärgerlich north") == ["stream sites/north/raw"]
    assert found(lake, "mast met") == ["array sites/north/wind"]
    assert found(lake, "mast nothing") == []
    assert found(lake, "", "stream") == [everything_there[0], everything_there[1], everything_there[3]]
    assert found(lake, "", "", "Mast") == ["array sites/north/wind"]
    assert found(lake, "", "", "mast") == []
    assert "array ~minmax/sites/north/wind/256" in found(lake, hidden=True)
    assert [one["name"] for one in everything(lake, kind="array")] == ["sites/north/wind"]


def test_pages_follow_each_other(lake: LocalLake) -> None:
    with lake.transaction():
        for number in range(25):
            lake.streams.create(f"s{number:02}")
            if number % 2:
                lake.arrays.create(f"s{number:02}", 1, "u1")
    seen, cursor = [], ""
    while cursor is not None:
        items, cursor = search(lake, limit=4, cursor=cursor)
        assert len(items) == 4 or cursor is None
        seen += [(one["name"], one["kind"]) for one in items]
    assert seen == sorted(seen)
    assert len(set(seen)) == len(seen) == 37
    for wrong in ("nonsense s01", "s01"):
        with pytest.raises(CursorError) as error:
            search(lake, cursor=wrong)
        assert str(error.value) == f"cursor: {wrong!r}, expected one that an answer gave"
    with pytest.raises(CursorError) as error:
        search(lake, kind="table")
    assert str(error.value) == "kind: 'table', expected array or stream"


def test_a_search_that_finds_little_reads_a_part(lake: LocalLake) -> None:
    with lake.transaction():
        for number in range(SCANNED + 10):
            lake.streams.create(f"s{number:05}")
    items, cursor = search(lake, f"s{SCANNED + 9:05}")
    assert (items, cursor) == ([], f"stream s{SCANNED - 1:05}")
    items, cursor = search(lake, f"s{SCANNED + 9:05}", cursor=cursor)
    assert ([one["name"] for one in items], cursor) == ([f"s{SCANNED + 9:05}"], None)


def test_all_about_an_array(lake: LocalLake) -> None:
    fill(lake)
    known = entry.describe(lake, "array", "sites/north/wind")
    assert known["path"] == ["sites", "north", "wind"]
    assert (known["shape"], known["dtype"], known["rows"], known["bytes"]) == ([10, 2], "<f4", 10, 80)
    assert (known["title"], known["units"], known["owner"]) == ("Wind", "m/s", "Met")
    assert known["source"] == {"kind": "stream", "name": "sites/north/raw"}
    assert known["lineage"] == {"sources": [known["source"]], "transformation": "csv", "outputs": []}
    assert abs((datetime.now(UTC) - datetime.fromisoformat(known["last_ingest"])).total_seconds()) < 60
    with lake.transaction():
        lake.arrays["sites/north/wind"].append(np.zeros((10, 2)))
    assert entry.describe(lake, "array", "sites/north/wind")["bytes_per_second"] > 0


def test_all_about_a_stream(lake: LocalLake) -> None:
    fill(lake)
    known = entry.describe(lake, "stream", "sites/north/raw")
    assert (known["size"], known["start"], known["chunks"], known["final"], known["policy"]) == (20, 0, 1, True, "csv")
    assert (known["tags"], known["description"]) == ([], "Messwerte, ÄRGERLICH")
    assert known["lineage"] == {"sources": [], "transformation": "", "outputs": []}
    assert entry.describe(lake, "stream", "été")["source"] is None
    for kind, name, message in (
        ("stream", "none", "stream 'none': none of this name"),
        ("table", "none", "kind: 'table', expected array or stream"),
    ):
        with pytest.raises(MissingError) as error:
            entry.describe(lake, kind, name)
        assert str(error.value) == message


def test_gaps_and_speed_are_of_what_came_last(lake: LocalLake) -> None:
    with lake.transaction():
        stream = lake.streams.create("s")
        for _ in range(20):
            stream.append(b"12345678")
        # as if a chunk had come each second, with a pause of a minute
        for number, (position, chunk) in enumerate(list(stream.record.chunks.items())):
            when = 1_700_000_000_000 + 1000 * (number + (60 if number > 12 else 0))
            stream.record.chunks[position] = (*chunk[:3], when, chunk[4])
    known = entry.describe(lake, "stream", "s")
    assert known["bytes_per_second"] == round(19 * 8 / 79, 3)
    assert known["gaps"] == [
        {"from": "2023-11-14T22:13:32.000+00:00", "to": "2023-11-14T22:14:33.000+00:00", "seconds": 61.0}
    ]


def graph(lake: LocalLake) -> Graph:
    return Graph().parse(data="".join(export(lake, BASE)), format="json-ld")


def test_the_export_is_a_dcat_catalogue(lake: LocalLake) -> None:
    fill(lake)
    read = graph(lake)
    (catalogue,) = read.subjects(RDF.type, DCAT.Catalog)
    sets = set(read.objects(catalogue, DCAT.dataset))
    assert sets == set(read.subjects(RDF.type, DCAT.Dataset))
    assert len(sets) == 4
    wind = URIRef(f"{BASE}page?kind=array&name=sites%2Fnorth%2Fwind#data")
    assert {str(one) for one in read.objects(wind, DCAT.keyword)} == {"weather", "Mast"}
    assert read.value(wind, DCTERMS.title) == Literal("Wind")
    assert read.value(wind, DCTERMS.license) == URIRef("https://example.org/by")
    assert read.value(wind, PROV.wasDerivedFrom) == URIRef(f"{BASE}page?kind=stream&name=sites%2Fnorth%2Fraw#data")
    raw = URIRef(f"{BASE}page?kind=stream&name=sites%2Fnorth%2Fraw#data")
    given = read.value(raw, DCAT.distribution)
    assert read.value(given, DCAT.downloadURL) == URIRef(f"{BASE}streams/data?name=sites%2Fnorth%2Fraw")
    assert read.value(given, DCAT.byteSize).toPython() == 20
    assert isinstance(read.value(raw, DCTERMS.modified).toPython(), datetime)


def test_the_export_keeps_to_its_vocabularies(lake: LocalLake) -> None:
    """Each class and property is one that its vocabulary defines, each with what it is for, each address one."""
    fill(lake)
    read = graph(lake)
    assert len(read) > 40
    for subject, predicate, object_ in read:
        assert any(predicate in space for space in (DCAT, DCTERMS, FOAF, PROV, RDF, RDFS, SDO)), predicate
        if predicate == RDF.type:
            assert any(object_ in space for space in (DCAT, DCTERMS, FOAF, SDO)), object_
        for one in (subject, object_):
            if isinstance(one, URIRef):
                one.n3()  # raises for what no address may contain
    for given in read.objects(None, DCAT.distribution):
        assert (given, RDF.type, DCAT.Distribution) in read
        for place in (DCAT.accessURL, DCAT.downloadURL, DCAT.mediaType):
            assert isinstance(read.value(given, place), URIRef)
    for one in read.subjects(RDF.type, DCAT.Dataset):
        assert read.value(one, DCTERMS.title)
        assert read.value(one, DCTERMS.identifier)
        assert read.value(one, DCTERMS.issued).datatype == URIRef("http://www.w3.org/2001/XMLSchema#dateTime")
    assert {str(one) for one in read.objects(None, RDFS.label)} == {HOSTILE}


def test_an_empty_lake_has_an_empty_catalogue(lake: LocalLake) -> None:
    assert json.loads("".join(export(lake, BASE)))["dcat:dataset"] == []


def test_attributes_may_be_anything(lake: LocalLake) -> None:
    """What is not as it should be is nothing, and never in the way of the others."""
    odd = {
        "title": ["a"], "description": 7, "tags": {"a": 1}, "owner": None, "units": {"x": []}, "license": 1.5,
        "source": 3, "source_kind": "stream", "sources": [None, "", "there"], "rate": 1e300, "half": "\ud800 \udfff",
    }  # fmt: skip
    with lake.transaction():
        lake.arrays.create("odd", 3, "f8", odd)
        lake.streams.create("half", "raw", {"title": "\ud800x", "tags": ["\udfff", [1]], "whole": "\U0001f30a"})
    (half, one), _ = search(lake)
    assert (one["title"], one["description"], one["tags"], one["owner"], one["units"]) == ("", "", [], "", "")
    assert one["source"] == {"kind": "stream", "name": "there"}
    assert (half["title"], half["tags"]) == ("?x", ["?"])
    for kind, name in (("array", "odd"), ("stream", "half")):
        json.dumps(entry.describe(lake, kind, name), ensure_ascii=False, allow_nan=False).encode()
    assert entry.describe(lake, "stream", "half")["attrs"]["whole"] == "\U0001f30a"
    "".join(export(lake, BASE)).encode()

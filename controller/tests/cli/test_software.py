"""software register, list, show."""

import tarfile


def test_a_directory_is_built_and_registered_once(cli, live, tmp_path) -> None:
    assert cli("software", "new", "acme.shop.till").status == 0
    first = cli("software", "register", tmp_path / "shop", "--json")
    assert (first.status, first.err) == (0, "")
    assert [each["software"] for each in first.json] == ["acme.shop.till"]
    assert cli("software", "register", tmp_path / "shop", "--json").json == first.json
    assert cli("software", "show", "acme.shop.till", "--json").json == first.json[0]
    assert first.json[0] in cli("software", "list", "--json").json
    assert first.json == [each for each in live.ok("GET", "/software")["items"] if each in first.json]

    defaults = tmp_path / "shop/roles/till/defaults/main.yml"
    defaults.write_text(defaults.read_text().replace("It works.", "It works well."))
    second = cli("software", "register", tmp_path / "shop", "--json").json[0]
    assert second["digest"] != first.json[0]["digest"]
    assert cli("software", "show", "acme.shop.till", "--json").json["digest"] == second["digest"]
    older = cli("software", "show", "acme.shop.till", "--digest", first.json[0]["digest"], "--json")
    assert older.json == first.json[0]
    rows = [line.split()[:3] for line in cli("software", "list").out.splitlines()]
    assert [row[0] for row in rows].count("acme.shop.till") == 2


def test_an_artifact_is_registered_as_it_is(cli, page_collection, tmp_path) -> None:
    from clachan.cli.software import _build

    artifact = _build(page_collection, tmp_path)
    assert tarfile.is_tarfile(artifact)
    assert "acme.web.page" in cli("software", "register", artifact).out


def test_show_tells_the_parameters(cli, page) -> None:
    lines = [" ".join(line.split()) for line in cli("software", "show", page).out.splitlines()]
    assert "publishes password url" in lines
    assert "Parameters of type main:" in lines
    assert "page_count integer - 1 How many." in lines
    assert "page_key string, secret - - Key of the page." in lines
    assert 'page_style one of "plain", "loud" - "plain" How it looks.' in lines


def test_what_cannot_be_registered(cli, tmp_path) -> None:
    missing = cli("software", "register", tmp_path / "none")
    assert (missing.status, missing.err) == (
        2,
        f"clachan: collection {tmp_path}/none: does not exist, expected a directory or a .tar.gz\n",
    )
    (tmp_path / "bare").mkdir()
    bare = cli("software", "register", tmp_path / "bare")
    assert (bare.status, bare.err) == (
        2,
        f"clachan: collection {tmp_path}/bare: no galaxy.yml, expected the directory of a collection\n",
    )
    (tmp_path / "bare/galaxy.yml").write_text("namespace: acme\n")
    broken = cli("software", "register", tmp_path / "bare")
    assert broken.status == 1
    assert broken.err.startswith(f"clachan: collection {tmp_path}/bare: ")
    assert broken.err.endswith(", expected it to build\n")
    (tmp_path / "file.tar.gz").write_bytes(b"no archive")
    foreign = cli("software", "register", tmp_path / "file.tar.gz")
    assert foreign.status == 1
    assert foreign.err.startswith("clachan: artifact: ")

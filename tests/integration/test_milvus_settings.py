"""Token, database and TLS of a real Milvus server, and the error for each wrong setting."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pymilvus import MilvusClient

from clipfleet.common.process.checks import check_milvus
from clipfleet.common.settings import Settings
from clipfleet.common.store import CollectionGone, StoreRefuses, StoreUnavailable
from clipfleet.common.store.milvus import MilvusStore, make_store
from support import services
from support.services import Milvus
from support.stores import a_collection, a_record


@pytest.fixture(scope="module")
def server(milvus_server: Milvus) -> Milvus:
    if not milvus_server.token:
        pytest.skip("the Milvus given by CLIPFLEET_TEST_MILVUS has no TLS or password we know of")
    return milvus_server


@pytest.fixture
def database(server: Milvus) -> Iterator[str]:
    options: Any = {"token": server.token, "server_pem_path": server.authority, "dedicated": True}
    client = MilvusClient(server.uri, **options)
    client.create_database("ours")
    yield "ours"
    inside = MilvusClient(server.uri, db_name="ours", **options)
    for collection in inside.list_collections():
        inside.drop_collection(collection)
    inside.close()
    client.drop_database("ours")
    client.close()


def settings(server: Milvus, **more: str) -> Settings:
    own = {"milvus_uri": server.uri, "milvus_token": server.token, "milvus_ca": server.authority}
    return Settings(**{**own, **more})  # type: ignore[arg-type]


def refusal(store: MilvusStore) -> str:
    with pytest.raises(StoreRefuses) as refused:
        store.ping()
    assert "\n" not in refused.value.detail
    return refused.value.detail


@pytest.mark.server
def test_a_collection_lives_in_the_database_that_is_set(server: Milvus, database: str) -> None:
    ours, others = make_store(settings(server, milvus_database=database)), server.store()
    collection, record = a_collection(), a_record("1")
    ours.create(collection)
    ours.upsert(collection, [record])
    ((match,),) = ours.search(collection, record.embedding[None], namespace="default", top_k=1)
    assert match.record.id == "1"
    assert not ours.has_mark("ab12")
    ours.set_mark("ab12")
    assert ours.has_mark("ab12")
    assert not others.has_mark("ab12")
    with pytest.raises(CollectionGone):
        others.count(collection)
    ours.drop(collection)


@pytest.mark.server
def test_the_version_of_a_real_server_is_supported(server: Milvus) -> None:
    assert check_milvus(server.store()) == []
    (finding,) = check_milvus(server.store(token="root:wrong"))
    assert "CLIPFLEET_MILVUS_TOKEN" in finding.what


@pytest.mark.server
@pytest.mark.parametrize("token", ["root:wrong", "nobody:Milvus", ""])
def test_a_wrong_token_is_named(server: Milvus, token: str) -> None:
    assert "CLIPFLEET_MILVUS_TOKEN" in refusal(server.store(token=token))


@pytest.mark.server
def test_an_unknown_database_is_named_and_how_to_make_it(server: Milvus) -> None:
    message = refusal(server.store(database="nope"))
    assert "'nope'" in message
    assert "create_database('nope')" in message


@pytest.mark.server
def test_a_certificate_that_nobody_here_trusts_is_told_from_one_for_another_host(
    server: Milvus, tmp_path: Path
) -> None:
    other = services.certificate(tmp_path, "localhost")
    for authority in ("", str(other.authority)):
        message = refusal(server.store(authority=authority))
        assert "not signed by a trusted authority" in message
        assert "CLIPFLEET_MILVUS_CA" in message
    elsewhere = server.uri.replace("localhost", "127.0.0.1")
    assert "for another host name" in refusal(server.store(uri=elsewhere))


@pytest.mark.server
def test_plain_http_to_a_server_that_speaks_tls_is_told_to_say_https(server: Milvus) -> None:
    message = refusal(server.store(uri=server.uri.replace("https", "http")))
    assert "must begin with https://" in message


def test_https_to_a_server_without_tls_is_told_to_say_http(tmp_path: Path) -> None:
    with services.milvus_lite(tmp_path) as uri:
        message = refusal(MilvusStore(uri.replace("http", "https"), timeout_s=5))
    assert "must begin with http://" in message


def test_a_file_that_holds_no_certificate_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.pem").write_text("no certificate")
    for name, why in (("empty.pem", "contains no certificate"), ("missing.pem", "cannot be read")):
        path = str(tmp_path / name)
        message = refusal(MilvusStore("https://127.0.0.1:9", authority=path))
        assert message.startswith(f"CLIPFLEET_MILVUS_CA: {path} {why}")


def test_an_address_of_something_else_is_named_without_its_password() -> None:
    message = refusal(MilvusStore("redis://user:secret@127.0.0.1:9"))
    assert "CLIPFLEET_MILVUS_URI" in message
    assert "secret" not in message


def test_a_milvus_that_is_away_is_no_refusal() -> None:
    for uri in ("http://127.0.0.1:9", "https://127.0.0.1:9"):
        with pytest.raises(StoreUnavailable) as away:
            MilvusStore(uri, timeout_s=1).ping()
        assert not isinstance(away.value, StoreRefuses)

"""More than a service can take is told to come back, with when."""

from pathlib import Path

import httpx

from clipfleet.common.catalogue import RedisCatalogue
from clipfleet.common.collection import Collection
from support import services
from support.gateways import gateway
from support.ledgers import a_job

MOST = 2


def start(http: httpx.Client, folder: Path, key: str = "") -> httpx.Response:
    source = {"type": "folder", "path": str(folder)}
    headers = {"Idempotency-Key": key} if key else {}
    return http.post("/v1/collections/c/jobs", json={"source": source}, headers=headers)


def test_so_many_jobs_and_no_more_but_the_same_one_again(tmp_path: Path) -> None:
    limits = {"CLIPFLEET_LIMITS__ACTIVE_JOBS": str(MOST), "CLIPFLEET_SOURCE_ROOTS": '["/"]'}
    with (
        services.valkey(tmp_path / "valkey") as url,
        gateway(tmp_path, url, **limits) as service,
        service.http() as http,
    ):
        made = Collection.new("c", metric="cosine", model="m", dim=4, fields={})
        RedisCatalogue(service.redis).add(made)
        first = start(http, tmp_path, "again")
        assert first.status_code == 202, first.text
        service.ledger.create(a_job("other"))

        refused = start(http, tmp_path)
        assert refused.status_code == 503
        assert refused.headers["content-type"] == "application/problem+json"
        assert int(refused.headers["retry-after"]) > 0
        assert "2 jobs" in refused.json()["detail"]
        upload = {"files": ("a.jpg", b"x")}
        assert http.post("/v1/collections/c/images", files=upload).status_code == 503

        assert start(http, tmp_path, "again").json()["id"] == first.json()["id"]
        service.ledger.cancel("other")
        assert start(http, tmp_path).status_code == 202

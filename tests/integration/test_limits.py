"""More than a service can take is told to come back, with when."""

from pathlib import Path
from typing import Any

import redis
from fastapi.testclient import TestClient

from clipfleet.common.collection import Collection
from clipfleet.common.ledger.catalogue import RedisCatalogue
from clipfleet.common.ledger.redis import RedisLedger
from support.gateways import in_process
from support.ledgers import a_job


def start(http: TestClient, folder: Path, key: str = "") -> Any:
    source = {"type": "folder", "path": str(folder)}
    headers = {"Idempotency-Key": key} if key else {}
    return http.post("/v1/collections/c/jobs", json={"source": source}, headers=headers)


def test_so_many_jobs_and_no_more_but_the_same_one_again(
    client: "redis.Redis", valkey_url: str, tmp_path: Path
) -> None:
    RedisCatalogue(client).add(Collection.new("c", metric="cosine", model="m", dim=4, fields={}))
    ledger, limits = RedisLedger(client), {"active_jobs": 2}
    with in_process(tmp_path, valkey_url, limits=limits, source_roots=[tmp_path]) as http:
        first = start(http, tmp_path, "again")
        assert first.status_code == 202, first.text
        ledger.create(a_job("other"))

        refused = start(http, tmp_path)
        assert refused.status_code == 503
        assert refused.headers["content-type"] == "application/problem+json"
        assert int(refused.headers["retry-after"]) > 0
        assert "2 jobs" in refused.json()["detail"]
        upload = {"files": ("a.jpg", b"x")}
        assert http.post("/v1/collections/c/images", files=upload).status_code == 503

        assert start(http, tmp_path, "again").json()["id"] == first.json()["id"]
        ledger.cancel("other")
        assert start(http, tmp_path).status_code == 202

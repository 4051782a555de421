"""Ids of images in the order of a field, as sorting on the web page asks for them."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from clipfleet.testing import MemoryService

ROWS: list[tuple[str, dict[str, Any]]] = [
    ("photo 10.jpg", {"year": 2019, "day": "2024-06-16", "cam": {"make": "Canon"}}),
    ("Photo 2.jpg", {"year": 2021, "day": "2024-06-02", "mixed": "text"}),
    ("photo 1.jpg", {"day": "2023-12-31", "mixed": 3, "cam": {"make": "Agfa"}}),
    ("a.jpg", {"year": 2019, "mixed": True, "tags": ["x"]}),
]


@pytest.fixture(scope="module")
def service() -> Iterator[MemoryService]:
    with MemoryService(dim=2, limits={"window": 100}) as running, running.client() as client:
        for name, count in (("photos", 0), ("many", 101)):
            client.create_collection(name, fields={"year": "int"})
            rows = ROWS if not count else [(f"{n}", {}) for n in range(count)]
            vectors = [{"id": i, "values": [1.0, 0.0], "metadata": data} for i, data in rows]
            client.upsert(name, vectors)
        yield running


def ask(service: MemoryService, collection: str = "photos", **body: Any) -> httpx.Response:
    return httpx.post(f"{service.url}/v1/collections/{collection}/ids", json=body)


@pytest.mark.parametrize(
    ("order", "ids"),
    [
        ({"order_by": "id"}, ["a.jpg", "photo 1.jpg", "Photo 2.jpg", "photo 10.jpg"]),
        (
            {"order_by": "id", "descending": True},
            ["photo 10.jpg", "Photo 2.jpg", "photo 1.jpg", "a.jpg"],
        ),
        ({"order_by": "year"}, ["a.jpg", "photo 10.jpg", "Photo 2.jpg", "photo 1.jpg"]),
        (
            {"order_by": "year", "descending": True},
            ["Photo 2.jpg", "a.jpg", "photo 10.jpg", "photo 1.jpg"],
        ),
        ({"order_by": "day"}, ["photo 1.jpg", "Photo 2.jpg", "photo 10.jpg", "a.jpg"]),
        ({"order_by": "mixed"}, ["photo 1.jpg", "Photo 2.jpg", "a.jpg", "photo 10.jpg"]),
        ({"order_by": "cam.make"}, ["photo 1.jpg", "photo 10.jpg", "a.jpg", "Photo 2.jpg"]),
        ({"order_by": "tags"}, ["a.jpg", "photo 1.jpg", "Photo 2.jpg", "photo 10.jpg"]),
        ({"order_by": "id", "filter": {"year": 2019}}, ["a.jpg", "photo 10.jpg"]),
        ({"order_by": "id", "namespace": "other"}, []),
    ],
)
def test_images_come_in_the_order_of_a_field_and_those_without_it_last(
    service: MemoryService, order: dict[str, Any], ids: list[str]
) -> None:
    assert ask(service, **order).json() == {"ids": ids}


@pytest.mark.parametrize("field", ["id", "uri"])
def test_images_are_ordered_over_all_pages_of_the_store(
    service: MemoryService, monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    for name in ("READ", "READ_IDS"):
        monkeypatch.setattr(f"clipfleet.api.collections.order.{name}", 3)
    answer = ask(service, "many", order_by=field, filter={"id": {"$ne": "100"}})
    assert answer.json() == {"ids": [str(n) for n in range(100)]}


@pytest.mark.parametrize(
    ("collection", "body", "detail"),
    [
        ("many", {"order_by": "id"}, "101 images pass the filter, and at most 100 can be put in"),
        ("photos", {"order_by": "embedding"}, "'embedding' is not a field to order by"),
        ("photos", {"order_by": "a\0"}, "order_by"),
        ("photos", {"order_by": "id", "filter": {"year": "x"}}, "year"),
        ("photos", {}, "order_by"),
    ],
)
def test_what_cannot_be_ordered_is_refused(
    service: MemoryService, collection: str, body: dict[str, Any], detail: str
) -> None:
    answer = ask(service, collection, **body)
    assert answer.status_code == 422
    assert detail in answer.json()["detail"]

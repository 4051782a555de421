"""A collection that another gateway has deleted and created again."""

import numpy as np
import pytest

from clipfleet import NotFound
from clipfleet.common.collection import Collection
from clipfleet.common.identity import primary_key
from clipfleet.common.store import Record
from clipfleet.testing import MemoryService

DIM = 8
UNIT = [1.0] + [0.0] * (DIM - 1)


def remove(service: MemoryService) -> Collection:
    """Delete the collection `c` as another gateway does."""
    old = service.parts.catalogue.find("c")
    assert old
    service.parts.catalogue.remove(old)
    service.parts.store.drop(old)
    return old


@pytest.mark.parametrize("exact", [False, True])
def test_a_search_finds_the_new_generation_at_once(exact: bool) -> None:
    with MemoryService(dim=DIM) as service, service.client() as client:
        client.create_collection("c")
        client.upsert("c", [{"id": "old", "values": UNIT}])
        assert client.search("c", vector=UNIT, exact=exact).matches[0].id == "old"
        old = remove(service)
        new = Collection.new("c", metric="cosine", model=old.model, dim=DIM, fields={})
        service.parts.catalogue.add(new)
        service.parts.store.create(new)
        key, embedding = primary_key("default", "new"), np.array(UNIT, np.float32)
        service.parts.store.upsert(new, [Record(key, "new", "default", "", embedding)])
        assert client.search("c", vector=UNIT, exact=exact).matches[0].id == "new"


def test_a_search_of_what_is_gone_is_not_found() -> None:
    with MemoryService(dim=DIM) as service, service.client() as client:
        client.create_collection("c")
        client.upsert("c", [{"id": "old", "values": UNIT}])
        assert client.search("c", vector=UNIT)
        remove(service)
        with pytest.raises(NotFound):
            client.search("c", vector=UNIT)

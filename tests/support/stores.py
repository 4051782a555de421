"""Collections and records for tests of stores."""

from dataclasses import replace
from typing import Any

import numpy as np

from clipfleet.common.collection import Collection, FieldType, Metric
from clipfleet.common.identity import primary_key
from clipfleet.common.store import Record

DIM = 8
FIELDS: dict[str, FieldType] = {
    "genre": "string",
    "year": "int",
    "price": "float",
    "sold": "bool",
    "words": "string[]",
    "codes": "int[]",
}


def a_collection(metric: Metric = "cosine") -> Collection:
    return Collection.new("my-photos", metric=metric, model="m", dim=DIM, fields=FIELDS)


def a_record(image_id: str, seed: int = 0, **more: Any) -> Record:
    namespace = more.get("namespace", "default")
    vector = np.random.default_rng(seed).standard_normal(DIM).astype(np.float32)
    blank = Record(
        pk=primary_key(namespace, image_id),
        id=image_id,
        namespace=namespace,
        uri=f"/photos/{image_id}"[:300],
        embedding=vector / np.linalg.norm(vector),
    )
    return replace(blank, **more)

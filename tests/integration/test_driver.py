"""pymilvus without pandas: what the store does needs none, and what needs it gets the real one."""

import os
import subprocess
import sys
from pathlib import Path

from support import services

STORE = """
import sys
from clipfleet.common.store.milvus import MilvusStore
from support.stores import a_collection, a_record

store, collection = MilvusStore(sys.argv[1], timeout_s=30), a_collection()
store.create(collection)
records = [a_record(name, seed) for seed, name in enumerate("abc")]
store.upsert(collection, records)
assert len(store.fetch(collection, [record.pk for record in records])) == 3
assert len(store.fingerprints(collection, [records[0].pk])) == 1
assert len(store.scan(collection, limit=10)) == 3
assert store.search(collection, records[0].embedding[None], namespace="default", top_k=2)
store.delete(collection, [records[0].pk])
assert store.missing([collection]) == []
store.drop(collection)
print([name for name in sys.modules if name.split(".")[0] in ("pandas", "pyarrow")])
"""

FRAMES = """
import sys
import clipfleet.common.store.driver
from pymilvus.orm.schema import is_scalar, is_valid_insert_data

assert "pandas" not in sys.modules
assert is_scalar(1.5)
assert not is_scalar([1.5])
import pandas

assert pandas.__version__
assert is_valid_insert_data(pandas.DataFrame())
"""

LOADED_BEFORE = """
import pandas
import clipfleet.common.store.driver
import pymilvus.orm.schema

assert pymilvus.orm.schema.pd is pandas
"""


def run(program: str, *arguments: str) -> str:
    command = [sys.executable, "-W", "error", "-c", program, *arguments]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_store_at_work_loads_no_pandas(tmp_path: Path) -> None:
    with services.milvus_lite(tmp_path) as uri:
        assert run(STORE, uri).strip() == "[]"


def test_pandas_is_the_real_one_once_pymilvus_uses_it() -> None:
    run(FRAMES)


def test_pandas_that_is_loaded_already_stays() -> None:
    run(LOADED_BEFORE)

"""Thumbnails over HTTP exist as long as their images, and are cached by the headers."""

import io
from pathlib import Path

from PIL import Image

from clipfleet.common.identity import primary_key
from support.in_process import InProcess
from support.stack import Up, finished, photos


def test_a_thumbnail_comes_and_goes_with_its_image(carried_stack: Up, flickr: list[Path]) -> None:
    folder, kept = carried_stack.beside("small"), carried_stack.folder / "blobs" / "thumbnails"
    first, second = photos(folder, flickr, 2)
    names = {f"{primary_key('default', str(path))}.jpg": path for path in (first, second)}

    def stored() -> set[Path]:
        return {names[path.name] for path in kept.rglob("*.jpg") if path.name in names}

    with carried_stack.client() as client, carried_stack.http() as http:
        collection = client.create_collection("small")
        finished(client, client.index("small", folder).id)
        address = "/v1/collections/small/thumbnail"
        answer = http.get(address, params={"id": str(first)})
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "image/jpeg"
        assert "max-age" in answer.headers["cache-control"]
        assert 128 <= max(Image.open(io.BytesIO(answer.content)).size) <= 256
        other = http.get(address, params={"id": str(second)})
        assert other.content != answer.content

        tag = {"If-None-Match": answer.headers["etag"]}
        same = http.get(address, params={"id": str(first)}, headers=tag)
        assert (same.status_code, same.content) == (304, b"")
        assert http.get(address, params={"id": str(second)}, headers=tag).status_code == 200

        assert stored() == {first, second}
        http.delete("/v1/collections/small/images", params={"id": str(first)})
        assert stored() == {second}
        gone = http.get(address, params={"id": str(first)})
        assert gone.status_code == 404
        assert "thumbnail" in gone.json()["detail"]
        assert http.get(address, params={"id": "x", "namespace": "a\x00"}).status_code == 422

        client.delete_collection("small")
        assert http.get(address, params={"id": str(second)}).status_code == 404
        assert collection.count == 0
        assert stored() == set()


def test_a_replaced_image_gets_a_new_one_with_another_tag(
    memory_service: InProcess, flickr: list[Path]
) -> None:
    folder = memory_service.folder / "replaced"
    (only,) = photos(folder, flickr, 1)
    with memory_service.client() as client, memory_service.http() as http:
        client.create_collection("replaced")
        finished(client, client.index("replaced", folder).id)
        address, query = "/v1/collections/replaced/thumbnail", {"id": str(only)}
        before = http.get(address, params=query).headers["etag"]
        only.write_bytes(flickr[5].read_bytes())
        finished(client, client.index("replaced", folder).id)
        after = http.get(address, params=query, headers={"If-None-Match": before})
        assert after.status_code == 200
        assert after.headers["etag"] != before
        client.delete_collection("replaced")

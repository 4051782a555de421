"""A feeder that sleeps FEED_S an image in place of its work, for benchmarks/simulated_host.py.

Feeders import this module, since it is the module of `SleepingPreprocess`.
"""

import os
import time

import numpy as np

from clipfleet.common.identity import bytes_hash
from clipfleet.common.imaging.preprocess import Pixels, Preprocess
from clipfleet.workers.ingest import feeder
from clipfleet.workers.ingest.prepare import Prepare, Prepared, Request
from clipfleet.workers.metrics import StageTimings

THUMBNAIL = bytes(int(os.environ.get("FEED_THUMBNAIL", "0")))
PIXELS = np.zeros((224, 224, 3), np.uint8)
FEED_S = float(os.environ.get("FEED_S", "0"))


class SleepingPreprocess(Preprocess):
    """Its module is imported where it is unpickled: in feeders."""


class SleepingPrepare(Prepare):
    def __call__(self, request: Request, timings: StageTimings) -> tuple[Prepared, Pixels]:
        with timings.timed("decode"):
            time.sleep(FEED_S)
        digest = bytes_hash(request.read.encode(), request.model) + request.details
        spec = self.kit.preprocess
        return Prepared(digest, 1, 1, 1, THUMBNAIL), np.zeros(
            (spec.height, spec.width, 3), np.uint8
        )


if FEED_S:
    feeder.Prepare = SleepingPrepare  # type: ignore[attr-defined]

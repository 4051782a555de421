"""One line per event on standard error."""

import logging
import sys

NOISY = ("httpx", "kombu", "celery.worker.strategy", "celery.app.trace", "celery.redirected")


def configure_logs() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)

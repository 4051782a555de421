"""How a part makes the checks when it starts: it refuses to go on where it would do harm."""

import logging
import os
import sys
import threading
import time
from collections.abc import Sequence
from typing import NoReturn

from clipfleet.common.checks import Check, Finding
from clipfleet.common.errors import Unavailable

log = logging.getLogger(__name__)

AGAIN_S = 3.0  # a service that is starting, too, may say the oddest things
WAIT_S = 2.0


def begin_checks(part: str, checks: Sequence[Check]) -> None:
    """Ends the process at the first error. What is away is checked when it comes, beside the
    part's own work: waiting for services is what every part does anyway."""
    left = [check for check in checks if not _checked(part, check)]
    if left:
        waiting = threading.Thread(target=_wait, args=(part, left), name="checks", daemon=True)
        waiting.start()


def _wait(part: str, left: list[Check]) -> None:
    while left:
        time.sleep(WAIT_S)
        left = [check for check in left if not _checked(part, check)]


def _checked(part: str, check: Check) -> bool:
    """False while what it asks is away."""
    try:
        found = check()
        if _errors(found):
            time.sleep(AGAIN_S)
            found = check()
    except Unavailable as error:
        log.info("not checked yet: %s", error.detail)
        return False
    except Exception:  # a part must not fail for a check that does
        log.exception("a check failed; going on without it")
        return True
    if errors := _errors(found):
        end(part, str(errors[0]))
    for finding in found:
        log.warning("%s", finding)
    return True


def _errors(found: Sequence[Finding]) -> list[Finding]:
    return [finding for finding in found if finding.severity == "error"]


def end(part: str, why: str) -> NoReturn:
    """One line, and the exit code for what another start would not mend (EX_CONFIG). From any
    thread, before there is work in hand that a sudden end could not stand."""
    sys.stderr.write(f"clipfleet {part}: {why}\n")
    sys.stderr.flush()
    os._exit(78)

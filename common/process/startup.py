"""How a part makes the checks when it starts: it refuses to go on where it would do harm."""

import logging
import os
import sys
import threading
import time
from collections.abc import Sequence
from typing import NoReturn

from clipfleet.common.errors import Unavailable
from clipfleet.common.process.checks import Check, Finding
from clipfleet.common.process.logs import OutageLog

log = logging.getLogger(__name__)

AGAIN_S = 3.0  # a service that is starting, too, may say the oddest things
SURE_S = 30.0  # and longest right after it came back, when a part may already be at work
WAIT_S = 2.0
PATIENCE_S = 10.0  # with a service that takes the question and does not answer


def begin_checks(part: str, checks: Sequence[Check]) -> None:
    """Ends the process at the first error. What is away is checked when it comes, beside the
    part's own work: waiting for services is what every part does anyway."""
    looked = threading.Event()
    threading.Thread(target=_look, args=(part, checks, looked), name="checks", daemon=True).start()
    looked.wait(PATIENCE_S)


def _look(part: str, checks: Sequence[Check], looked: threading.Event) -> None:
    outage = OutageLog(log, "not checked yet")
    left = _unchecked(part, checks, AGAIN_S, outage)
    looked.set()
    while left:
        time.sleep(WAIT_S)
        left = _unchecked(part, left, SURE_S, outage)
    outage.back()


def _unchecked(
    part: str, checks: Sequence[Check], sure_s: float, outage: OutageLog
) -> Sequence[Check]:
    """Those of the checks that could not be made, since what they ask is away."""
    reasons = {check: _checked(part, check, sure_s) for check in checks}
    if away := sorted(filter(None, set(reasons.values()))):
        outage.away("; ".join(away))
    return [check for check, reason in reasons.items() if reason]


def _checked(part: str, check: Check, sure_s: float) -> str:
    """Why what it asks is away; "" once it was checked. `sure_s`: how long an error must last."""
    try:
        found, until = check(), time.monotonic() + sure_s
        while _errors(found) and time.monotonic() < until:
            time.sleep(AGAIN_S)
            found = check()
    except Unavailable as error:
        return error.detail
    except Exception:  # a part must not fail for a check that does
        log.exception("a check failed; going on without it")
        return ""
    if errors := _errors(found):
        end(part, str(errors[0]))
    for finding in found:
        log.warning("%s", finding)
    return ""


def _errors(found: Sequence[Finding]) -> list[Finding]:
    return [finding for finding in found if finding.severity == "error"]


def end(part: str, why: str) -> NoReturn:
    """One line, and the exit code for what another start would not mend (EX_CONFIG). From any
    thread, before there is work in hand that a sudden end could not stand."""
    sys.stderr.write(f"clipfleet {part}: {why}\n")
    sys.stderr.flush()
    os._exit(os.EX_CONFIG)

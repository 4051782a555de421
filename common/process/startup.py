"""Runs the checks when a part starts, and ends the process when a check finds an error."""

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

# An error must last, since a service that is starting gives misleading answers: for 3 s at the
# start of a part, and for 30 s after an outage, when the part may already be working.
RETRY_INTERVAL_S = 3.0
CONFIRM_AFTER_S = 30.0
POLL_INTERVAL_S = 2.0  # between tries to reach a service that is away
FIRST_ROUND_TIMEOUT_S = 10.0  # a service that accepts connections may never answer


def begin_checks(part: str, checks: Sequence[Check]) -> None:
    """Run the checks on a thread, and end the process when one finds an error.

    Returns after the first round, or after FIRST_ROUND_TIMEOUT_S. A service that is away is checked
    when it comes back, while the part works: every part waits for services anyway.

    Args:
        part: the name of the part, for the message.
        checks: see `common/process/checks.py`.
    """
    first_round = threading.Event()
    threading.Thread(
        target=_run_until_done, args=(part, checks, first_round), name="checks", daemon=True
    ).start()
    first_round.wait(FIRST_ROUND_TIMEOUT_S)


def _run_until_done(part: str, checks: Sequence[Check], first_round: threading.Event) -> None:
    outage = OutageLog(log, "not checked yet")
    remaining = _run_checks(part, checks, RETRY_INTERVAL_S, outage)
    first_round.set()
    while remaining:
        time.sleep(POLL_INTERVAL_S)
        remaining = _run_checks(part, remaining, CONFIRM_AFTER_S, outage)
    outage.back()


def _run_checks(
    part: str, checks: Sequence[Check], confirm_after_s: float, outage: OutageLog
) -> Sequence[Check]:
    """Run the checks. Returns those that did not run because their service is away."""
    reasons = {check: _run_check(part, check, confirm_after_s) for check in checks}
    if away := sorted(filter(None, set(reasons.values()))):
        outage.away("; ".join(away))
    return [check for check, reason in reasons.items() if reason]


def _run_check(part: str, check: Check, confirm_after_s: float) -> str:
    """Run one check. Returns why its service is away, or "" when the check ran.

    Args:
        confirm_after_s: seconds for which an error must last before the process ends.
    """
    try:
        findings, until = check(), time.monotonic() + confirm_after_s
        while _errors(findings) and time.monotonic() < until:
            time.sleep(RETRY_INTERVAL_S)
            findings = check()
    except Unavailable as error:
        return error.detail
    except Exception:  # a bug in a check must not end the part
        log.exception("a check at start raised an error; the part continues without it")
        return ""
    if errors := _errors(findings):
        exit_misconfigured(part, str(errors[0]))
    for finding in findings:
        log.warning("%s", finding)
    return ""


def _errors(findings: Sequence[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.severity == "error"]


def exit_misconfigured(part: str, reason: str) -> NoReturn:
    """End the process with one line and exit code 78 (EX_CONFIG): a restart would not help.

    Can be called on any thread, and ends the process at once, without clean-up: call it only before
    the part has claimed work.
    """
    sys.stderr.write(f"clipfleet {part}: {reason}\n")
    sys.stderr.flush()
    os._exit(os.EX_CONFIG)

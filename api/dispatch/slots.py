"""Slots that the callers of one gateway share, so that no API key takes all of them."""

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import Any, TypeVar

from clipfleet.api.http.bodies import reservation
from clipfleet.common.errors import ClipfleetError, RateLimited, Unavailable
from clipfleet.common.process.logs import in_context
from clipfleet.common.shares import may_take

T = TypeVar("T")


class SharedSlots:
    """A number of slots for one kind of work. Only for use on the gateway's event loop.

    `may_take` is the rule: one key alone gets half of the slots, and another key still finds one.
    The caller of a request without a key is "", which may take all slots.

    Args:
        limit: the number of slots.
        work: what a slot is for, in the plural, for error messages.
        setting: the setting that changes the limit; "": none.
        retry_after_s: seconds after which a refused client should retry.
        advice: ends the error messages.
    """

    def __init__(
        self,
        limit: int,
        work: str,
        setting: str = "",
        retry_after_s: int = 2,
        advice: str = "try again",
    ) -> None:
        self._limit, self._retry_after_s, self._advice = limit, retry_after_s, advice
        self._slots = f"{limit} slots for {work}" + (f" ({setting})" if setting else "")
        self._held: Counter[str] = Counter()
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    @property
    def taken(self) -> int:
        """The number of slots in use."""
        return self._held.total()

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Take a slot for the length of the block, without waiting for one.

        Raises:
            Unavailable: all slots are taken.
            RateLimited: the key of the current request has its share of the slots.
        """
        caller = reservation().caller
        if not self._may_take(caller):
            raise self._refusal(caller)
        self._held[caller] += 1
        try:
            yield
        finally:
            self._release(caller)

    @asynccontextmanager
    async def turn(self, timeout_s: float) -> AsyncIterator["Slot"]:
        """Wait for a slot, and take it for the length of the block. Callers take turns.

        Args:
            timeout_s: seconds to wait for a slot at most.

        Raises:
            Unavailable: no slot was free in time.
            RateLimited: the key of the current request had its share of the slots all the time.
        """
        caller = reservation().caller
        await self._wait(caller, timeout_s)
        slot = Slot()
        try:
            yield slot
        finally:
            slot.end(partial(self._release, caller))

    async def _wait(self, caller: str, timeout_s: float) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(caller, deque()).append(turn)
        self._grant()
        try:
            async with asyncio.timeout(timeout_s):
                await turn
        except BaseException as error:
            if turn.cancel() or turn.cancelled():
                self._grant()  # forgets the turn
            else:
                self._release(caller)
            if isinstance(error, TimeoutError):
                raise self._refusal(caller) from error
            raise

    def _grant(self) -> None:
        """Give the free slots to waiting callers, as far as they may take them."""
        for caller, turns in list(self._waiting.items()):
            live = deque(turn for turn in turns if not turn.done())
            if live:
                self._waiting[caller] = live
            else:
                del self._waiting[caller]
        while (next_caller := self._next()) is not None:
            turns = self._waiting[next_caller]
            self._held[next_caller] += 1
            turns.popleft().set_result(None)
            self._waiting.move_to_end(next_caller)
            if not turns:
                del self._waiting[next_caller]

    def _next(self) -> str | None:
        return next((caller for caller in self._waiting if self._may_take(caller)), None)

    def _may_take(self, caller: str) -> bool:
        return may_take(self._held[caller] if caller else 0, self._limit - self.taken)

    def _release(self, caller: str) -> None:
        self._held[caller] -= 1
        self._held += Counter()  # forgets the callers that hold nothing
        self._grant()

    def _refusal(self, caller: str) -> ClipfleetError:
        if self.taken >= self._limit:
            return Unavailable(
                f"this gateway has {self._slots}, and all are taken; {self._advice}",
                self._retry_after_s,
            )
        return RateLimited(
            f"this gateway has {self._slots}; this key has {self._held[caller]} of them, and the "
            f"others are for other keys; {self._advice}",
            [("Retry-After", str(self._retry_after_s))],
        )


class Slot:
    """A slot in use."""

    def __init__(self) -> None:
        self._call: Future[Any] | None = None

    async def call(self, pool: Executor, function: Callable[..., T], *args: Any) -> T:
        """Call a function on a thread. The slot stays taken until the function has returned, even
        when nobody waits for it any more.

        Args:
            pool: the threads.
            function: the function.
            args: its arguments.
        """
        call = pool.submit(in_context(partial(function, *args)))
        self._call = call
        return await asyncio.wrap_future(call)

    def end(self, release: Callable[[], None]) -> None:
        """Call `release` on the event loop once the slot is free."""
        if self._call is None or self._call.done():
            release()
            return
        loop = asyncio.get_running_loop()

        def returned(_: "Future[Any]") -> None:
            with suppress(RuntimeError):  # the event loop has ended
                loop.call_soon_threadsafe(release)

        self._call.add_done_callback(returned)

"""Replicas learn from each other, through one stream of a Redis or Valkey server, and obey the operator together.

No request ever waits for it: a replica decides by its own evidence, tells what it has learnt every few seconds (what
closes a target, at once) and adds what the others tell. Sums and events are told and nothing is ever overwritten, so
nothing is lost when several tell at the same time. Without the server every replica goes on with what it knows.

For people the last hour of all replicas is told as well, as counts. The stream has the messages of an hour, so that who
comes later knows it as the others do; serial numbers tell what is missing, and since when nothing is.

What operators drained stands in a hash beside the stream, for as long as it holds. Whoever is told writes it there and
says so in the stream; the others then read it, as they do at the start, now and then, and when the server is back.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from random import Random
from typing import Any, TypeVar

import orjson
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from router.drains import Drains
from router.records import record
from router.routing import Selector
from router.routing.fleet import FORGET_REPLICA_S
from router.routing.hour import PHASES, RESULTS
from router.routing.sketch import Counts, Histogram, Window
from router.routing.stats import SUMS

log = logging.getLogger(__name__)

VERSION = b"1"  # of the messages; others are left alone
HOUR_S = 3600.0  # messages are kept so long, for the sake of what people are told
HISTORY_S = 600.0  # ... and are evidence for so long: longer than any gate stays closed, five half-lives
UNSENT = 120  # messages kept while the server cannot be reached, the oldest dropped
SOON_S = 0.05  # what happens at once is told together
ANSWER_S = 2.0  # the server has so long
WAIT_S = 5.0  # a read waits so long for news
CLOCK_S = 60.0  # the server's clock is read so often
PAGE = 20  # messages read at a time
LARGEST = 256 * 1024  # bytes of a message; one that would have more goes without the hour
REPLICAS = 1000  # that are remembered
NOTHING = "0-0"  # an id before all messages
BACKOFF_S, BACKOFF_CAP_S = 0.5, 30.0

_OPERATIONS = frozenset({"generate", "edit", "variation"})


@record
class Heard:
    """What is known of another replica. Times are the selector's."""

    serial: int  # of its latest message
    origin: str
    at: float  # when that was told
    since: float  # everything that it told from then on has been taken in


class Sharing:
    """One replica's part. Belongs to the event loop that it is started on.

    ``accounts`` has the targets of this installation, each with a mark of the credential it is used with (``mark``):
    what others tell of any other is left out, and a refused credential concerns only those who use it. ``clock`` is
    the selector's.
    ``on_message(direction, result)`` is called per message: ``out`` or ``in``, and ``ok``, ``known`` (our own, or read
    before), ``ignored`` (none of ours) or ``error`` (nothing was exchanged). ValueError if the URL is none.
    """

    def __init__(
        self,
        selector: Selector,
        url: str,
        stream: str,
        every_s: float,
        *,
        replica: str,
        accounts: Mapping[str, str],
        drains: Drains,
        clock: Callable[[], float],
        random: Random,
        on_message: Callable[[str, str], None] = lambda direction, result: None,
    ) -> None:
        self._selector = selector
        self._url = url
        self._stream = stream
        self._drained = f"{stream}:drained"
        self._drains = drains
        self._every_s = every_s
        self._replica = replica
        self._origin = ""
        self._accounts = accounts
        self._clock = clock
        self._random = random
        self._on_message = on_message
        # Two connections, since one of them is always waiting. Trying again is done here, where it can be seen.
        self._out = _client(url, ANSWER_S)
        self._in = _client(url, WAIT_S + ANSWER_S)
        self._unsent: deque[tuple[float, int, dict[str, Any]]] = deque(maxlen=UNSENT)  # when, serial number, delta
        self._serial = 0
        self._urgent = asyncio.Event()
        selector.on_news(self._urgent.set)
        self._heard: dict[str, Heard] = {}  # by replica
        self._listened_at = -math.inf  # when everything was last read that the server had
        self._last = NOTHING  # id of the last message read
        self._ahead_s = 0.0  # the server's clock minus ours
        self._read_clock_at = -math.inf
        self._agreed = False  # nothing new is known to have been said by operators
        self._tried = asyncio.Event()  # the server has been asked, whatever came of it
        self._bad = {"out", "in"}  # directions whose last exchange failed or is still to come
        self._said_up: bool | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def up(self) -> bool:
        """Whether the last exchange in both directions was good."""
        return not self._bad

    @property
    def others(self) -> int:
        """How many other replicas are heard of."""
        return self._selector.others(self._clock())

    def hour(self) -> tuple[float, float] | None:
        """The span of which everything that others measured is known: from so many seconds ago to so many seconds ago.
        None if nothing was told by others in the last hour."""
        now = self._clock()
        told = [one for one in self._heard.values() if now - one.at < HOUR_S and one.origin != self._origin]
        if not told:
            return None
        since_s = min(now - max(one.since for one in told), HOUR_S)
        # Who has fallen silent while we listened has left, and told everything before.
        there = [one.at for one in told if self._listened_at - one.at <= FORGET_REPLICA_S]
        until_s = min(now - min(there, default=self._listened_at), HOUR_S)
        return max(since_s, until_s), until_s

    def start(self, origin: str) -> None:
        """Tell and listen until closed, on the running loop. Nothing that the server does or does not is an error.

        ``origin`` names the ledger that the selector was warmed with: what an earlier process on the same ledger learnt
        is known from there.
        """
        self._origin = origin
        self._tasks = {
            asyncio.create_task(self._again_and_again("out", self._tell)),
            asyncio.create_task(self._again_and_again("in", self._listen)),
        }

    async def asked(self) -> None:
        """Return when the server has said what operators drained, or cannot."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ANSWER_S):
                await self._tried.wait()

    async def tell_drains(self) -> bool:
        """Tell all replicas what operators drained here. False if the server cannot be reached: then they are told when
        it can be."""
        try:
            async with asyncio.timeout(ANSWER_S), _client(self._url, ANSWER_S) as client:
                await self._agree(client)
        except Exception as error:  # the same as for everything else that the server does wrong
            log.warning("other replicas are told later what is drained: %s: %s", type(error).__name__, error)
            return False
        return True

    async def close(self) -> None:
        """Last words: what was learnt since, and that nothing runs here any more. Then let go of the server."""
        while self._tasks:
            for task in self._tasks:
                task.cancel()  # again and again: the client may lose one (asyncio.wait_for does before Python 3.12)
            _, self._tasks = await asyncio.wait(self._tasks, timeout=0.1)
        with contextlib.suppress(Exception):
            if self.up:
                async with asyncio.timeout(ANSWER_S):
                    self._note()
                    await self._send()
        for client in (self._out, self._in):
            with contextlib.suppress(Exception):
                await client.aclose()

    async def _again_and_again(self, direction: str, once: Callable[[], Awaitable[None]]) -> None:
        """After a fault, after a pause. A fault and its end are logged once each."""
        pause_s = BACKOFF_S
        while True:
            try:
                await once()
            except Exception as error:  # whatever a server can do wrong must not end this
                self._bad.add(direction)
                self._on_message(direction, "error")
                self._say(False, f"{type(error).__name__}: {error}")
                self._tried.set()
                await asyncio.sleep(pause_s * (0.5 + 0.5 * self._random.random()))
                pause_s = min(2.0 * pause_s, BACKOFF_CAP_S)
            else:
                pause_s = BACKOFF_S
                self._bad.discard(direction)
                if self.up:
                    self._say(True)

    def _say(self, up: bool, why: str = "") -> None:
        if up is self._said_up:
            return
        self._said_up = up
        if up:
            log.info("routing statistics are shared between replicas")
        else:
            log.warning("routing statistics are not shared, every replica goes by its own: %s", why)

    # --- telling -------------------------------------------------------------------------------------------------

    async def _tell(self) -> None:
        """Wait until it is time or something must be told at once, and tell it."""
        with contextlib.suppress(asyncio.TimeoutError):
            async with asyncio.timeout(self._every_s):
                await self._urgent.wait()
                await asyncio.sleep(SOON_S)
        self._note()
        await self._send()

    def _note(self) -> None:
        """What was learnt until now is kept until the server has it, with its time: it must not grow young again."""
        self._urgent.clear()
        now = self._clock()
        self._unsent.append((now, self._serial, self._selector.delta(now)))
        self._serial += 1

    async def _send(self) -> None:
        now = self._clock()
        while self._unsent and now - self._unsent[0][0] > HOUR_S:
            self._unsent.popleft()
        oldest = f"{int((now + self._ahead_s - HOUR_S) * 1000)}" if self._read_clock_at > -math.inf else None
        sending = list(self._unsent)
        async with self._out.pipeline(transaction=False) as pipe:
            for at, serial, delta in sending:
                marks = {
                    name: self._accounts.get(name, "") for name, gate in delta["gates"].items() if "blocked_s" in gate
                }
                told = delta | {"accounts": marks, "origin": self._origin, "serial": serial, "age_s": now - at}
                written = orjson.dumps(told)
                if len(written) > LARGEST:
                    written = orjson.dumps(told | {"hours": None})
                pipe.xadd(self._stream, {b"v": VERSION, b"told": written}, minid=oldest)
            pipe.expire(self._stream, int(HOUR_S))
            await pipe.execute()
        # If the answer is lost they are sent again, and known by their serial numbers.
        for _ in sending:
            self._unsent.popleft()
            self._on_message("out", "ok")

    # --- listening -----------------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        """Read what is new, at first the last hour; waits for a few seconds where there is nothing."""
        if self._clock() - self._read_clock_at > CLOCK_S or "in" in self._bad:
            await self._read_clock()
            self._agreed = False
        if not self._agreed:
            self._agreed = True
            await self._agree(self._in)
            self._tried.set()
        found: Any = await self._in.xread({self._stream: self._last}, count=PAGE, block=int(WAIT_S * 1000))
        taken = 0
        for _, messages in found:
            for number, fields in messages:
                taken += 1
                self._last = number.decode()
                self._on_message("in", self._take(fields, _milliseconds(self._last) / 1000))
                await asyncio.sleep(0)  # requests are served in between: of a busy replica it takes milliseconds
        if taken < PAGE:
            self._listened_at = self._clock()

    async def _read_clock(self) -> None:
        """Messages are dated by the server's clock, so that those of the replicas need not agree."""
        seconds, microseconds = await self._in.time()
        self._read_clock_at = self._clock()
        server = seconds + microseconds / 1e6
        self._ahead_s = server - self._read_clock_at
        # A server that was set back, or another one in its place, begins again.
        if _milliseconds(self._last) > server * 1000 + 1000 or self._last == NOTHING:
            self._last = f"{int((server - HOUR_S) * 1000)}-0"

    async def _agree(self, client: Redis) -> None:
        """Take in what operators said elsewhere, and say what they said here."""
        found: Any = await client.hgetall(self._drained)
        there = {name.decode("utf-8", "replace"): word for name, written in found.items() if (word := _word(written))}
        await self._drains.hear(there)
        news: dict[Any, Any] = {
            target: f"{'out' if word.out else 'in'} {word.at!r}"
            for target, word in self._drains.words.items()
            if target not in there or there[target][1] < word.at
        }
        if news:
            async with client.pipeline(transaction=False) as pipe:
                pipe.hset(self._drained, mapping=news)
                pipe.xadd(self._stream, {b"v": VERSION, b"drained": b""})
                pipe.expire(self._stream, int(HOUR_S))
                await pipe.execute()

    def _take(self, fields: Mapping[bytes, bytes], at: float) -> str:
        """Take in one message, dated ``at`` on the server's clock; what became of it, as the metrics call it."""
        if b"drained" in fields:
            self._agreed = False
            return "ok"
        told = read(fields, self._accounts)
        if told is None:
            return "ignored"
        before = self._heard.get(told.replica)
        if told.replica == self._replica or (before is not None and told.serial <= before.serial):
            return "known"
        now = self._clock()
        age_s = max(0.0, now + self._ahead_s - at) + told.age_s
        since = self._since(told, before, now - age_s)
        self._heard.pop(told.replica, None)
        if len(self._heard) >= REPLICAS:
            del self._heard[next(iter(self._heard))]  # the one heard of longest ago
        self._heard[told.replica] = Heard(told.serial, told.origin, now - age_s, since)
        if age_s > HOUR_S:
            return "known"
        known: dict[str, Any] = {}
        if told.origin == self._origin:
            # What an earlier process on the same ledger learnt is known; what was closed is not.
            known = {"arms": [], "hours": [], "in_flight": {}}
        if age_s > HISTORY_S:
            known |= {"arms": [], "gates": {}, "in_flight": {}}
        self._selector.merge({**told.delta, **known}, now - age_s)
        return "ok"

    def _since(self, told: Told, before: Heard | None, at: float) -> float:
        """From when on nothing is missing of what a replica measured, now that it has told this."""
        if not told.whole:
            return at
        if before is not None:
            return before.since if told.serial == before.serial + 1 else at
        if told.serial > 0:
            return at
        # A process begins. What it knows from its ledger, earlier ones told, and we may have been there to hear it.
        latest = at - told.warmed_s
        heard_until = max((one.at for one in self._heard.values() if one.origin == told.origin), default=-math.inf)
        return -math.inf if latest <= heard_until else latest


def mark(key: str | None, stream: str) -> str:
    """Tells one credential from another, and nothing of what it is."""
    return hmac.new(stream.encode(), (key or "").encode(), "sha256").hexdigest()[:12]


def _milliseconds(number: str) -> int:
    """When a message was written, on the server's clock."""
    return int(number.partition("-")[0])


def _client(url: str, timeout_s: float) -> Redis:
    return Redis.from_url(
        url,
        protocol=2,
        max_connections=1,
        socket_timeout=timeout_s,
        socket_connect_timeout=ANSWER_S,
        retry=Retry(NoBackoff(), 0),
        client_name="pixelroute",
    )


# --- what others wrote: believed only as far as it is what a replica would write -----------------------------------


def _word(written: bytes) -> tuple[bool, float] | None:
    """What an operator said of a target, and when, as it stands in the hash."""
    side, _, at = written.partition(b" ")
    try:
        return {b"out": True, b"in": False}[side], float(at)
    except (LookupError, ValueError):
        return None


@record
class Told:
    """One message: whose, and what ``Selector.merge`` takes."""

    replica: str
    origin: str
    serial: int
    age_s: float  # how old it was when it was sent
    warmed_s: float  # ... and the latest attempt that an earlier process on its ledger made; infinite without any
    whole: bool  # whether it says what was measured for people
    delta: Mapping[str, Any]


_UNSOUND = (ValueError, TypeError, LookupError, AttributeError)  # what reading anything else than expected raises
T = TypeVar("T")


def _sound(read_one: Callable[[Any], T], told: Iterable[Any]) -> list[T]:
    """Those of them that can be read."""
    found: list[T] = []
    for one in told:
        with contextlib.suppress(*_UNSOUND):
            found.append(read_one(one))
    return found


def read(fields: Mapping[bytes, bytes], targets: Mapping[str, str]) -> Told | None:
    """The message in a stream's entry, without what is said of other targets, and without refused credentials that are
    not those of ``targets``; None if it is none of ours.

    What is no sound word on one target is left out, and takes nothing else with it: what is lost here is lost for good.
    """
    raw = fields.get(b"told", b"")
    if fields.get(b"v") != VERSION or len(raw) > LARGEST:
        return None
    try:
        told = orjson.loads(raw)
        replica = _text(told["replica"])
        of_hours = told.get("hours")  # earlier versions do not tell it
        arms, hours = _sound(_arm, told["arms"]), _sound(_hour, of_hours or ())
        marks = told["accounts"]
        gates = dict(_sound(_gate, told["gates"].items()))
        for target, gate in gates.items():
            if marks.get(target) != targets.get(target):
                gate.pop("blocked_s", None)
        busy = dict(_sound(_busy, told["in_flight"].items()))
        delta = {
            "replica": replica,
            "arms": [arm for arm in arms if arm["target"] in targets],
            "hours": [hour for hour in hours if hour["target"] in targets],
            "gates": {target: gate for target, gate in gates.items() if target in targets},
            "in_flight": {target: calls for target, calls in busy.items() if target in targets},
        }
        warmed_s = told.get("warmed_s")
        return Told(
            replica,
            _text(told["origin"]),
            int(_number(told["serial"], 0, 2**53)),
            _number(told["age_s"], 0, HOUR_S),
            math.inf if warmed_s is None else _number(warmed_s, 0, math.inf),
            of_hours is not None and len(hours) == len(of_hours),
            delta,
        )
    except _UNSOUND:
        return None


_MOST = 1e6  # samples in one message
_LOG_S = 30.0  # logarithms of seconds lie within this
_LONG_S = 86_400.0  # no attempt takes longer


def _number(value: Any, least: float, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise ValueError("not a number of the kind expected")
    return float(value)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= 200:
        raise ValueError("not a name")
    return value


def _named(told: Mapping[str, Any]) -> dict[str, Any]:
    """What is told of which target at which operation."""
    if told["operation"] not in _OPERATIONS:
        raise ValueError("no operation")
    target = _text(told["target"])
    return {"operation": told["operation"], "target": target, "provider": target.partition("/")[0]}


def _arm(arm: Mapping[str, Any]) -> dict[str, Any]:
    if len(arm["sums"]) != SUMS:
        raise ValueError("not what is told of an arm")
    n, y, successes, failures, fail_s = arm["sums"]
    sums = [
        (n := _number(n, 0, _MOST)),
        _number(y, -_LOG_S * n, _LOG_S * n),
        _number(successes, 0, _MOST),
        (failures := _number(failures, 0, _MOST)),
        _number(fail_s, 0, _LONG_S * failures),
    ]
    seen_s = None if arm["seen_s"] is None else _number(arm["seen_s"], 0, math.inf)
    return _named(arm) | {"sums": sums, "seen_s": seen_s}


_SECONDS = (Histogram.bucket(0.0), Histogram.bucket(_LONG_S))  # the first and the last bucket
_ENDS = (0, RESULTS - 1)


def _hour(hour: Mapping[str, Any]) -> dict[str, Any]:
    return _named(hour) | {
        "phases": {phase: _counts(told, *_SECONDS) for phase, told in hour["phases"].items() if phase in PHASES},
        "classes": [
            (_kind(kind), _counts(results, *_ENDS), _counts(seconds, *_SECONDS))
            for kind, results, seconds in hour["classes"]
        ],
    }


def _kind(kind: Any) -> tuple[int, int, str | None] | None:
    if kind is None:
        return None
    half_octaves, images, quality = kind
    return (
        _whole(half_octaves, -100, 100),
        _whole(images, 0, _MOST),
        None if quality is None else _text(quality),
    )


def _counts(told: Any, first: int, last: int) -> list[Counts]:
    """Of each slot in how many seconds it ends, and its buckets and counts in turns."""
    checked: list[Counts] = []
    for ends_s, counts in told:
        buckets, times = counts[::2], counts[1::2]
        if len(buckets) != len(times) or not set(map(type, counts)) <= {int}:
            raise ValueError("not buckets and counts")
        if buckets and not (first <= min(buckets) and max(buckets) <= last and min(times) >= 1 and max(times) <= _MOST):
            raise ValueError("not counts of these buckets")
        checked.append((_number(ends_s, -HOUR_S, Window.SLOT_S), list(counts)))
    return checked


def _whole(value: Any, least: float, most: float) -> int:
    if not isinstance(value, int):
        raise TypeError("not a whole number")
    return int(_number(value, least, most))


def _busy(told: tuple[str, Any]) -> tuple[str, int]:
    """A target, and how many calls run there."""
    target, calls = told
    return _text(target), int(_number(calls, 0, 1e6))


def _gate(told: tuple[str, Mapping[str, Any]]) -> tuple[str, dict[str, Any]]:
    """A target, and its gates."""
    target, gate = told
    checked: dict[str, Any] = {
        name: _number(gate[name], 0, HISTORY_S) for name in ("limited_s", "blocked_s") if name in gate
    }
    if "state" in gate:
        closed, reason, pause, level, age = gate["state"]
        if not isinstance(closed, bool):
            raise ValueError("not a state")
        checked["state"] = [
            closed,
            None if reason is None else _text(reason),
            _number(pause, 0, HISTORY_S),
            int(_number(level, 0, _MOST)),
            _number(age, 0, math.inf),
        ]
    return _text(target), checked

"""Kills a ledger's process with SIGKILL, again and again, at random moments under load. Run by test_crash.py.

    python crashing.py LEDGER KILLS SEED

Each life is a forked process with eight workers. A worker opens an attempt, and only then "calls the provider", which
charges for it by noting the attempt in the file ``billed``; then it may note a job, settles, and answers its client,
which is noted in ``answered``. Notes are single appends that survive the process, like a provider's own books.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import time
from pathlib import Path

from router.ledger import Ledger, State
from tests.router.ledger.builders import opening, settlement


async def live(ledger: Ledger, life: int, luck: random.Random, billed: int, answered: int) -> None:
    async def worker(number: int) -> None:
        for call in range(10_000):
            attempt_id = f"{life}-{number}-{call}"
            await ledger.open(opening(attempt_id))
            os.write(billed, f"{attempt_id}\n".encode())
            await asyncio.sleep(luck.choice((0, 0, 0.001)))
            if luck.random() < 0.3:
                await ledger.job(attempt_id, f"job-{attempt_id}", {"url": "u"})
            state = luck.choice((State.SETTLED, State.SETTLED, State.SETTLED, State.UNKNOWN, State.VOID))
            await ledger.settle(settlement(attempt_id, state))
            os.write(answered, f"{attempt_id} {state}\n".encode())

    async with ledger:
        await asyncio.gather(*(worker(number) for number in range(8)))


def main(path: Path, kills: int, seed: int) -> None:
    luck = random.Random(seed)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    billed = os.open(path.with_name("billed"), flags)
    answered = os.open(path.with_name("answered"), flags)
    for life in range(kills):
        child = os.fork()
        if not child:
            asyncio.run(live(Ledger(path, reserve_bytes=0), life, random.Random(f"{seed}-{life}"), billed, answered))
            os._exit(1)  # not reached: a life only ends by the signal
        time.sleep(luck.uniform(0.005, 0.25))  # some die before they have opened anything
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
            sys.exit(f"life {life} ended by itself: {status}")


main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))

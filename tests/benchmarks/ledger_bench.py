"""What the ledger costs: latency of a durable record, records per second and CPU per record, at 1, 8 and 64 waiters.

    python -m tests.benchmarks.ledger_bench [--records 20000] [--directory DIR]

Each waiter opens an attempt and settles it, again and again; both wait for the disk (full sync). The wall figures are
the disk's; CPU is user + system of the whole process, with the encoding, the hash chain, the checkpoints and the event
loop, but without making the records. Ids begin with the time, as the router's do: random ones touch more pages.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import tempfile
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path

import uvloop

from pricing import Expected, ImageSize, Usage
from router.ledger import Ledger, Opening, Role, Settlement, State, expected_as_dict, usage_as_dict

SIZE = ImageSize(1024, 1024)
PRICE = {
    "currency": "USD",
    "effective_at": "2026-01-01T00:00:00Z",
    "source": "official",
    "components": [{"type": "output", "metric": "megapixel", "unit_price": "0.008", "rounding": "up"}],
}
DECISION = {
    "policy": "balanced",
    "reason": "fal because 0.0139 $ beats quick 0.0152 $ by 9 %",
    "candidates": [
        {"target": f"provider{i}/flux.2-dev-turbo", "success": 0.997, "expected_s": 3.23, "cost_nanos": 8_000_000,
         "score": 0.0139}
        for i in range(4)
    ],
}  # fmt: skip
ITEM = {
    "type": "output", "metric": "megapixel", "label": "output megapixel", "quantity": "1", "billable_quantity": "1",
    "unit_price": "0.008", "amount": "0.008",
}  # fmt: skip


def opening(now: datetime) -> Opening:
    identity = f"{time.time_ns():016x}{uuid.uuid4().hex[16:]}"
    return Opening(
        attempt_id=identity,
        request_id=f"req_{identity}",
        attempt_no=1,
        role=Role.FIRST,
        opened_at=now,
        key="benchmark",
        team="media",
        project="catalogue",
        tags={"customer": "acme", "environment": "production"},
        user=None,
        retry_count=0,
        operation="generate",
        model="flux.2-dev-turbo",
        requested_model="flux.2-dev-turbo",
        target="fal/flux.2-dev-turbo",
        provider="fal",
        provider_model="fal-ai/flux-2/turbo",
        images=1,
        estimate_nanos=8_000_000,
        currency="USD",
        price_id="fal/flux.2-dev-turbo@2026-01-01",
        price=PRICE,
        expected=expected_as_dict(Expected(size=SIZE, prompt_characters=42)),
        request_digest="0" * 64,
        decision=DECISION,
    )


def settlement(attempt_id: str, now: datetime) -> Settlement:
    return Settlement(
        attempt_id=attempt_id,
        state=State.SETTLED,
        recorded_at=now,
        outcome="success",
        amount_nanos=8_000_000,
        list_nanos=8_000_000,
        currency="USD",
        basis="measured",
        items=(ITEM,),
        usage=usage_as_dict(Usage(outputs=(SIZE,))),
        computed_nanos=8_000_000,
        provider_request_id="0f5b6d4e-1b7c-4c1e-9d55-7d2a3c0a9b11",
        delivered=True,
        latency_ms=3232,
        ttfb_ms=3100,
    )


async def run(directory: Path, waiters: int, records: int) -> str:
    commits: list[float] = []
    ledger = Ledger(directory / f"{waiters}.db", on_commit=lambda rows, seconds, ok: commits.append(seconds))
    waits: list[float] = []
    openings = [opening(datetime.now(UTC)) for _ in range(records // 2)]
    work = [(one, settlement(one.attempt_id, one.opened_at)) for one in reversed(openings)]

    async def waiter() -> None:
        while work:
            one, end = work.pop()
            began = time.perf_counter()
            await ledger.open(one)
            opened = time.perf_counter()
            await ledger.settle(end)
            waits.extend((opened - began, time.perf_counter() - opened))

    async with ledger:
        cpu, wall = cpu_s(), time.perf_counter()
        await asyncio.gather(*(waiter() for _ in range(waiters)))
        cpu, wall = cpu_s() - cpu, time.perf_counter() - wall
    waits.sort()
    done = len(waits)
    return (
        f"{waiters:7} {done:8} {done / wall:9.0f} {done / len(commits):10.1f} {waits[done // 2] * 1e3:8.2f} "
        f"{waits[done * 99 // 100] * 1e3:8.2f} {waits[-1] * 1e3:8.1f} {cpu / done * 1e6:10.1f}"
    )


def cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=20_000, help="records per row of the table")
    parser.add_argument("--directory", type=Path, help="where the ledgers are made (default: a temporary directory)")
    options = parser.parse_args()
    print("waiters  records records/s per commit   p50 ms   p99 ms   max ms CPU us/rec")
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        for waiters in (1, 8, 64):
            print(uvloop.run(run(Path(directory), waiters, options.records)), flush=True)


if __name__ == "__main__":
    main()

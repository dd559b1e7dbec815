"""A router's ledger under a limit on the size of its files, which is lifted later. Prints opened, refused, settled."""

from __future__ import annotations

import asyncio
import resource
import sys
from pathlib import Path

from router.ledger import Ledger, LedgerError
from tests.router.ledger.builders import mended, opening, settlement


async def main(path: Path) -> None:
    ledger = Ledger(path, reserve_bytes=0)
    await ledger.start()
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 << 20, hard))
    opened = 0
    try:
        while True:
            await ledger.open(opening(f"a{opened}"))
            opened += 1
    except LedgerError:
        pass
    settles = [asyncio.ensure_future(ledger.settle(settlement(f"a{number}"))) for number in range(opened)]
    await asyncio.sleep(0.1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    await asyncio.gather(*settles)
    await mended(ledger)
    await ledger.open(opening("again"))
    await ledger.close()
    print(opened, 1, len(settles))


asyncio.run(main(Path(sys.argv[1])))

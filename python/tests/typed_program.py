"""A program of a user. It is only checked by mypy, and never run."""

from __future__ import annotations

import asyncio
import datetime
from typing import Optional

import taskfork
import taskfork.blocking
import taskfork.server
from taskfork import Client, TimedOut

async def main() -> int:
    async with Client("unix:/tmp/x", max_workers=2) as client:
        call = client.call("add", 1, 2)
        results = await asyncio.gather(call, client.call("add", 2, 3))
        async with client.checkout(timeout=1.0) as checkout:
            await checkout.ready()
            number = 0
            try:
                number = await checkout.call("x")
            except TimedOut as error:
                print(error.after)
            day = await checkout.call("day", returns=datetime.date)
            print(day.year, (await checkout.call("days", returns=list[datetime.date]))[0].year)
            print(await checkout.call("maybe", returns=Optional[datetime.date]))
        done, _ = await asyncio.wait([client.call("x")])
        return len(results) + len(done) + number

def work() -> None:
    with taskfork.blocking.Client("unix:/tmp/x", timeout=None) as client:
        print(client.call("day", returns=datetime.date).year)
        client.call("x")

def add(a: int, b: int) -> int:
    return a + b

if __name__ == "__main__":
    taskfork.server.run([add], listen="unix:/tmp/x")

"""Changes of LoRAs in a storm: sent while all else goes on, looked after, and taken down for whoever judges."""

from __future__ import annotations

import time
from pathlib import Path
from random import Random

import httpx2

from tests.chaos import adapters, orders
from tests.chaos.account import Account, Look, read_rows, settled
from tests.chaos.history import SLACK_SECONDS, Violation
from tests.chaos.orders import Command, Order
from tests.chaos.target import Failed, Target, within


class Changes:
    """Of the models of `target`, with the LoRAs in a new `folder`. What comes of them is in `account`."""

    def __init__(self, target: Target, folder: Path, *, timeout_seconds: float) -> None:
        self._target, self._folder = target, folder
        self.account = Account(timeout_seconds)
        adapters.lay(folder)

    async def begin(self) -> None:
        """Change each model once, so that the first change of a storm is not the first of all: that opens a file."""
        for model in adapters.MODELS:
            await self.order(orders.draw(Random(model), "set", model=model))

    async def order(self, order: Order) -> None:
        """Send it; where its answer does not tell what became of it, look."""
        await self._target.up.wait()
        command = Command(order, self._target.life, time.time())
        if order.careful:
            command.only = self.account.known(order.model)
        self.account.commands.append(command)
        try:
            await orders.send(self._target.http, command)
        except httpx2.TransportError as error:
            command.broken = f"{type(error).__name__} {error}"
        command.ended = time.time()
        if command.status != 200:
            await self.look(order.model)

    async def strike(self) -> None:
        """Let the next replica that meets a LoRA with a fault have it."""
        self.account.strikes.append(time.time())
        adapters.struck(self._folder).touch()

    async def look(self, model: str) -> Look:
        """What the list says of this model, from whichever gateway answers."""
        while True:
            await self._target.up.wait()
            life, sent = self._target.life, time.time()
            try:
                answer = await self._target.http.get("/v1/list_loras", params={"model": model})
            except httpx2.TransportError:
                if life is self._target.life and self._target.up.is_set():
                    raise
                continue
            look = Look(life, sent, time.time(), answer.json())
            self.account.looks.append(look)
            return look

    async def look_at_all(self) -> None:
        """What the list says of every model."""
        for model in adapters.MODELS:
            await self.look(model)

    async def settle(self, replicas: int) -> list[Violation]:
        """What keeps so many replicas from being in one state, all of them, in their own time."""
        found = []
        for model in adapters.MODELS:

            async def in_step(model: str = model) -> bool:
                return settled((await self.look(model)).view, replicas)

            try:
                await within(in_step, f"every replica of {model} in one state", SLACK_SECONDS)
            except Failed as failed:
                found.append(Violation("left behind", model, f"{failed}: {self.account.looks[-1].view}"))
        return found

    def close(self, data_dir: Path) -> None:
        """Read what is written down, once nobody writes any more."""
        self.account.rows = read_rows(data_dir / "replicast.db")

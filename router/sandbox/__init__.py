"""Providers to try the router on: emulators that speak each provider's HTTP API, keep its invoice, and misbehave.

They are written from the providers' documentation alone and share nothing with the router's adapters or price books,
so that one misreading cannot hide in both. Every provider host is a path prefix of one server::

    http://127.0.0.1:8001/queue.fal.run/fal-ai/flux-2/turbo

``build`` makes the application, ``serve`` runs it; ``BASES`` and ``KEYS`` say how to reach each provider there.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.routing import BaseRoute, Mount

from router.sandbox import control
from router.sandbox.azure import Azure
from router.sandbox.bfl import BFL
from router.sandbox.deepinfra import DeepInfra
from router.sandbox.emulator import Emulator
from router.sandbox.fal import Fal
from router.sandbox.google import Google
from router.sandbox.gpu import GpuFast, GpuSpot
from router.sandbox.openai import OpenAI
from router.sandbox.replicate import Replicate
from router.sandbox.runware import Runware
from router.sandbox.server import serve
from router.sandbox.stability import Stability
from router.sandbox.together import Together
from router.sandbox.world import World
from router.sandbox.xai import XAI

__all__ = ["BASES", "KEYS", "PROVIDERS", "build", "serve"]

PROVIDERS: tuple[type[Emulator], ...] = (
    Fal, OpenAI, Azure, GpuFast, GpuSpot, BFL, Replicate, Google, Together, Runware, DeepInfra, XAI, Stability,
)  # fmt: skip

BASES: Mapping[str, Mapping[str, str]] = {
    "fal": {"run": "/fal.run", "queue": "/queue.fal.run"},
    "openai": {"api": "/api.openai.com/v1"},
    "azure": {"api": "/sandbox.openai.azure.com"},
    "gpu-fast": {"api": "/gpu-fast.local/v1"},
    "gpu-spot": {"api": "/gpu-spot.local/v1"},
    "bfl": {"api": "/api.bfl.ai/v1"},
    "replicate": {"api": "/api.replicate.com/v1"},
    "google": {"api": "/generativelanguage.googleapis.com/v1beta"},
    "together": {"api": "/api.together.xyz/v1"},
    "runware": {"api": "/api.runware.ai/v1"},
    "deepinfra": {"api": "/api.deepinfra.com/v1/openai"},
    "xai": {"api": "/api.x.ai/v1"},
    "stability": {"api": "/api.stability.ai"},
}
"""Provider -> name of the URL -> path on the sandbox's server that stands for the provider's base URL."""

KEYS: Mapping[str, str] = {provider.name: provider.key for provider in PROVIDERS}
"""Provider -> the only key its emulator accepts."""


def build(*, seed: int = 0, time_scale: float = 0.1, faults: Iterable[Mapping[str, Any]] | None = None) -> Starlette:
    """The sandbox as an ASGI application.

    The same ``seed`` gives the same latencies, ids and chosen seeds for the same calls. ``time_scale`` stretches the
    providers' usual times: 1 is life-like, 0 answers at once. ``faults`` are standing orders as the control endpoint
    takes them. What happened is at ``app.state.world``. Raises ValueError for a bad order.
    """
    world = World(seed=seed, time_scale=time_scale)
    emulators = {provider.name: provider(world) for provider in PROVIDERS}
    for order in faults or ():
        world.faults.order(order)

    routes: list[BaseRoute] = [Mount("/_control", routes=control.routes(world, emulators))]
    routes += [
        Mount(f"/{host}", routes=emulator.routes(host)) for emulator in emulators.values() for host in emulator.hosts
    ]

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await world.close()

    app = Starlette(routes=routes, lifespan=lifespan)
    app.state.world = world
    app.state.emulators = emulators
    return app

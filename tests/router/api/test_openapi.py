"""The OpenAPI document says what the code does."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from starlette.routing import Route

from router.api import fields
from router.api.openapi import document
from router.api.routing import routing_routes
from tests.router.api.conftest import KEY


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"]
        for item in value.values():
            yield from references(item)
    elif isinstance(value, list):
        for item in value:
            yield from references(item)


def test_every_reference_leads_somewhere() -> None:
    whole = document()
    for reference in set(references(whole)):
        node = whole
        for step in reference.removeprefix("#/").split("/"):
            node = node[step]
        assert node


NAMED = {"name": "model"}


class Steered:
    """Nothing to see, nothing to steer."""

    async def snapshot(self, target: str | None = None) -> dict[str, Any]:
        return {}

    def knows(self, target: str) -> bool:
        return False

    def scope(self) -> dict[str, Any]:
        return {}

    async def steer(self, target: str, out: bool) -> dict[str, Any]:
        return {}


def test_every_route_is_described(make_app: Callable[..., Any]) -> None:
    routes = {
        (re.sub(r"\{(\w+):path\}", lambda match: f"{{{NAMED.get(match[1], match[1])}}}", route.path), method.lower())
        for route in [*make_app().routes, *routing_routes(Steered(), [], None)]
        if isinstance(route, Route) and route.path != "/openapi.json"
        for method in route.methods or ()
        if method != "HEAD"
    }
    paths = document()["paths"]
    described = {(path, method) for path, item in paths.items() for method in item if method != "parameters"}
    assert described == routes


def test_every_field_is_described() -> None:
    schemas = document()["components"]["schemas"]
    assert set(schemas["Generation"]["properties"]) == set(fields.KINDS) - {"input_fidelity"}
    assert set(schemas["Edit"]["properties"]) == set(fields.KINDS) | {"images", "mask"}


def test_patterns_are_the_rules() -> None:
    size = document()["components"]["schemas"]["Generation"]["properties"]["size"]["pattern"]
    for text in ("auto", "1024x1024", "1x1", "999999x1"):
        assert re.search(size, text)
    for text in ("0x0", "1024x", "99999999x99999999", "", "1024X1024"):
        assert not re.search(size, text)


@pytest.mark.anyio
async def test_it_is_served_to_everybody(client: httpx.AsyncClient) -> None:
    client.headers.pop("Authorization")
    answer = (await client.get("/openapi.json")).json()
    assert answer == document()
    assert answer["openapi"].startswith("3.1")
    assert KEY not in str(answer)

"""Azure OpenAI: OpenAI's models by deployment (how-to at learn.microsoft.com, openai 3.52 azure module, 2026-11-20).

Two forms reach the same deployments: the classic one names the deployment in the path and needs an ``api-version``; v1
takes it as ``model``. The deployments here are named after their models. Work, tokens and prices are OpenAI's; keys,
headers and errors are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute

from router.sandbox.emulator import Call, Problem, Wrong
from router.sandbox.openai import OpenAI
from router.sandbox.openai_shape import Fields

_DEPLOYMENT = "/openai/deployments/{deployment}/images"
_V1 = "/openai/v1"


class Azure(OpenAI):
    name = "azure"
    key = "sandbox-azure"
    hosts: ClassVar = ("sandbox.openai.azure.com",)

    def routes(self, host: str) -> Sequence[BaseRoute]:
        return [
            self.route(f"{_DEPLOYMENT}/generations", self.generate),
            self.route(f"{_DEPLOYMENT}/edits", self.edit),
            self.route(f"{_V1}/images/generations", self.generate),
            self.route(f"{_V1}/images/edits", self.edit),
            self.route(f"{_V1}/models", self.models, method="GET", step="other"),
        ]

    def authorized(self, request: Request) -> bool:
        return request.headers.get("api-key") == self.key or super().authorized(request)

    def stamp(self, call: Call, response: Response) -> None:
        response.headers["apim-request-id"] = call.id
        response.headers["x-ms-region"] = "Sandbox"
        response.headers["x-ratelimit-remaining-requests"] = str(500 - self.in_flight)

    def asked_model(self, call: Call, fields: Fields) -> Any:
        """The deployment of the path; what the body says beside it (the official client's ``model``) does not count."""
        deployment = call.request.path_params.get("deployment")
        if deployment is None:
            return super().asked_model(call, fields)
        if not call.request.query_params.get("api-version"):
            raise Problem(_error(404, "404", "Resource not found"))
        return deployment

    def error(self, wrong: Wrong) -> Response:
        match wrong.kind:
            case "unauthenticated":
                return _error(401, "401", "Access denied due to invalid subscription key or wrong API endpoint.")
            case "not_found":
                return _error(404, "DeploymentNotFound", "The API deployment for this resource does not exist.")
            case "rate_limited":
                wait = f" Please retry after {wrong.retry_after:g} seconds." if wrong.retry_after is not None else ""
                reply = _error(429, "429", f"Requests to this deployment have exceeded the call rate limit.{wait}")
                if wrong.retry_after is not None:
                    reply.headers["retry-after"] = f"{wrong.retry_after:g}"
                    reply.headers["retry-after-ms"] = f"{wrong.retry_after * 1000:g}"
                return reply
            case "refused":
                results = {"sexual": {"filtered": True, "severity": "high"}}
                inner = {"code": "ResponsibleAIPolicyViolation", "content_filter_results": results}
                text = "Your request was rejected as a result of our safety system."
                return _error(400, "content_policy_violation", text, inner_error=inner, type="invalid_request_error")
            case _:
                return super().error(wrong)


def _error(status: int, code: str, message: str, **more: Any) -> Response:
    return JSONResponse({"error": {"code": code, "message": message, **more}}, status)

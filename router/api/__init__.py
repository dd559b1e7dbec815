"""The HTTP face for applications: the OpenAI Images API, the model list, health and metrics.

``routes`` and ``build_app`` put it together; ``ports`` says what they need from the rest of the program.
"""

from router.api.app import build_app, routes
from router.api.http import Exchange

__all__ = ["Exchange", "build_app", "routes"]

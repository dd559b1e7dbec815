"""pixelroute's router: the OpenAI Images API in front of many providers."""

__version__ = "0.1.0"

"""The HTTP face for applications: the OpenAI Images API, the model list, health and metrics.

``app.routes`` and ``app.build_app`` put it together; ``ports`` says what they need from the rest of the program.
"""

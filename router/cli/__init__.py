"""The command ``pixelroute``. Its verbs are told apart by what they do: run, look, account."""

from __future__ import annotations

import click

from router import __version__
from router.cli import finance, looking, replaying, serving


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="pixelroute")
def main() -> None:
    """An image-generation gateway: OpenAI's Images API in, the best provider out, every cent in a durable ledger.

    Without any key: `pixelroute demo` shows everything on the sandbox providers, `pixelroute serve --sandbox` keeps
    them for your application. With keys in the environment (FAL_KEY, OPENAI_API_KEY, ...): `pixelroute serve`.
    """


for _command in (
    serving.serve,
    serving.demo,
    serving.sandbox,
    serving.drain,
    serving.undrain,
    looking.check,
    looking.quote,
    looking.explain,
    replaying.replay,
    finance.report,
    finance.prices,
    finance.ledger_group,
):
    main.add_command(_command)

"""`medley serve`: a model over the OpenAI API, until Ctrl-C."""

from __future__ import annotations

import json

import click

EPILOG = """\b
Examples:
  medley serve demo
  medley serve ./my-model --host 0.0.0.0 --port 8080 --api-key auto
"""


@click.command("serve", epilog=EPILOG)
@click.argument("model")
@click.option("--host", default="127.0.0.1", show_default=True, help="Anything but loopback needs --api-key.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0 takes a free one.")
@click.option("--api-key", envvar="MEDLEY_API_KEY", help="What clients must send; auto makes one and prints it.")
@click.option("--dtype", type=click.Choice(["auto", "fp32", "bf16"]), default="auto", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the address as one line of JSON.")
def command(model: str, host: str, port: int, api_key: str | None, dtype: str, as_json: bool) -> None:
    """Serve MODEL over the OpenAI API.

    MODEL is a job, a directory in Hugging Face format, or a hub name.
    """
    from medley.protocol.hosts import is_loopback
    from medley.serving.guard import LOCAL_NAMES, Guard, require_key
    from medley.serving.resolve import open_generator
    from medley.serving.server import bind, run_server, url_of

    key = require_key(host, api_key)
    sock = bind(host, port)
    with sock:
        resolved, generator = open_generator(model, dtype)
        from medley.serving.api import make_app
        from medley.serving.engine import Engine

        served = make_app(generator, resolved.name, Engine(generator))
        app = Guard(served, key, (*LOCAL_NAMES, host) if is_loopback(host) else None)
        made = key if api_key == "auto" else None
        run_server(app, sock, lambda: _announce(resolved.name, url_of(sock), made, as_json))


def _announce(name: str, url: str, made_key: str | None, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"model": name, "url": f"{url}/v1", "api_key": made_key}))
        return
    click.echo(f"{name} answers at {url}/v1 (Ctrl-C stops)")
    if made_key:
        click.echo(f"key: {made_key}")

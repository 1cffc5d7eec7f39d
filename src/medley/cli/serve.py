"""`medley serve`: a model over the OpenAI API, from this machine or from the machines of a pool, until Ctrl-C."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import click

from medley.cli.asking import Asking, asks
from medley.cli.watching import announce, watch

if TYPE_CHECKING:
    from medley.engines.wording import Wording
    from medley.serving.engine import Answering
    from medley.serving.fleet import ServeOptions
    from medley.serving.offers import Offer
    from medley.transports.control.operator import OperatorClient

EPILOG = """\b
Examples:
  medley serve demo
  medley serve ./my-model --host 0.0.0.0 --port 8080 --api-key auto
  medley serve ./large --local-stages 3 --weights int8
  medley serve ./large --pool --survive 1
  medley serve ./large --pool --draft-model ./small
  medley serve --watch
"""

KV_HELP = "Of all answers at once, prompts included."
DRAFT_HELP = "A smaller model of the same vocabulary, which guesses where the text does not repeat itself."
WIRE_HELP = "Hidden states between stages."
SPLIT_ONLY = (
    "machines",
    "objective",
    "weights",
    "pin",
    "survive",
    "kv_tokens",
    "draft",
    "draft_model",
    "wire",
    "priority",
)


@click.command("serve", epilog=EPILOG)
@click.argument("model", required=False, default="")
@click.option("--host", default="127.0.0.1", show_default=True, help="Anything but loopback needs --api-key.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0 takes a free one.")
@click.option("--api-key", envvar="MEDLEY_API_KEY", help="What clients must send; auto makes one and prints it.")
@click.option("--dtype", type=click.Choice(["auto", "fp32", "bf16"]), default="auto", help="Of a model in one process.")
@click.option("--pool", is_flag=True, help="Split over the machines of the running coordinator.")
@click.option("--local-stages", type=click.IntRange(0, 64), default=0, help="Split over processes of this machine.")
@click.option("--machines", default="", metavar="NAME,...", help="Of the pool, these and no others.")
@click.option("--objective", type=click.Choice(["latency", "throughput"]), default="latency", help="What to plan for.")
@click.option("--weights", type=click.Choice(["bf16", "fp32", "int8", "int4"]), help="Of a split model; default: bf16.")
@click.option("--pin", default="", metavar="NODE=LAYERS,...", help="A layout by hand, as in `medley plan`.")
@click.option("--survive", type=click.IntRange(0, 1), default=0, help="1: a death costs no loading; twice the memory.")
@click.option("--kv-tokens", type=click.IntRange(256, 1 << 24), default=8 * 2048, show_default=True, help=KV_HELP)
@click.option("--draft/--no-draft", default=True, show_default=True, help="Guess tokens that repeat earlier text.")
@click.option("--draft-model", default="", metavar="SMALL", help=DRAFT_HELP)
@click.option("--wire", type=click.Choice(["auto", "fp32", "bf16", "int8"]), default="auto", help=WIRE_HELP)
@click.option("--priority", type=int, default=0, show_default=True, help="Against the pool's training jobs.")
@click.option("--watch", "watching", is_flag=True, help="Show what a pool serves, stage by stage.")
@asks
def command(asking: Asking, model: str, watching: bool, **given: Any) -> None:
    """Serve MODEL over the OpenAI API.

    MODEL is a job, a directory in Hugging Face format, or a hub name. With --pool or --local-stages its layers are
    spread over several machines or processes, and a machine that dies costs a pause, no word.
    """
    from medley.protocol.errors import UserError

    if watching:
        watch(asking, model)
        return
    if not model:
        raise UserError("say what to serve: medley serve MODEL")
    if _split_wanted(asking, given):
        _split(asking, model, given)
    else:
        _whole(asking, model, given)


def _split_wanted(asking: Asking, given: dict[str, Any]) -> bool:
    """Raises UserError for options that do not go together."""
    from click.core import ParameterSource

    from medley.protocol.errors import UserError

    context = click.get_current_context()
    said = {name for name in given if context.get_parameter_source(name) is ParameterSource.COMMANDLINE}
    pool, stages = given["pool"] or bool(asking.coordinator), given["local_stages"]
    if not pool and not stages:
        for name in SPLIT_ONLY:
            if name in said:
                option = f"--{name.replace('_', '-')}"
                raise UserError(f"{option} is for a split model: add --pool or --local-stages N")
        return False
    if pool and stages:
        raise UserError("--local-stages are processes of this machine, not of a pool: leave out one of the two")
    if stages and given["machines"]:
        raise UserError("--machines names machines of a pool: --local-stages makes its own")
    if given["draft_model"] and not given["draft"]:
        raise UserError("--draft-model makes drafts, and --no-draft wants none: leave out one of the two")
    if stages == 1 and given["survive"]:
        raise UserError("--survive 1 needs a second stage to hold what the first one holds: --local-stages 2")
    return True


def _whole(asking: Asking, model: str, given: dict[str, Any]) -> None:
    """In this process."""
    from medley.serving.guard import require_key
    from medley.serving.resolve import open_generator
    from medley.serving.server import bind

    require_key(given["host"], given["api_key"])
    with bind(given["host"], given["port"]) as sock:
        resolved, generator = open_generator(model, given["dtype"])
        from medley.serving.engine import Engine

        _run(asking, given, sock, resolved.name, generator, Engine(generator))


def _split(asking: Asking, model: str, given: dict[str, Any]) -> None:
    from medley.serving.guard import require_key
    from medley.serving.server import bind

    require_key(given["host"], given["api_key"])
    with ExitStack() as held:
        sock = held.enter_context(bind(given["host"], given["port"]))
        from medley.serving.fleet import open_pipelined
        from medley.serving.guessing import check_draft

        if given["draft_model"]:
            check_draft(given["draft_model"], model, whole=bool(given["local_stages"]))
        options, host, encrypt, operator = held.enter_context(_machines(asking, model, given))
        served = open_pipelined(model, options, host, encrypt, operator)
        served.engine.host.offer = _offer(model, served.name, sock, keyed=given["api_key"] is not None)
        held.callback(served.engine.close)
        served.engine.start()
        _run(asking, given, sock, served.name, served.words, served.engine)


def _offer(model: str, name: str, sock: Any, keyed: bool) -> Offer:
    """Where other programs of this machine find it."""
    from pathlib import Path

    from medley.serving.offers import Offer
    from medley.serving.server import url_of

    path = Path(model).expanduser()
    url = url_of(sock).replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")
    return Offer(name, f"{url}/v1", keyed, str(path.resolve()) if path.is_dir() else "")


@contextmanager
def _machines(
    asking: Asking, model: str, given: dict[str, Any]
) -> Iterator[tuple[ServeOptions, str, bool, Callable[[], OperatorClient]]]:
    """The pool that is there, or one of this machine's own for as long as the serving lasts."""
    if given["local_stages"]:
        with _local(model, given) as found:
            yield found
        return
    from medley.serving.fleet import ServeOptions

    with asking.client() as client:
        status = client.ask("status")
    _check_names(given["pin"], given["machines"], [node["node"] for node in status["nodes"]])
    names = _names(given["machines"])
    expected = len(names) or max(1, sum(node["connected"] for node in status["nodes"]))
    yield (
        ServeOptions(**_common(given), machines=names, expected=expected, pins=given["pin"]),
        str(status["reachable"]),
        bool(status["encrypts"]),
        asking.client,
    )


@contextmanager
def _local(model: str, given: dict[str, Any]) -> Iterator[tuple[ServeOptions, str, bool, Callable[[], OperatorClient]]]:
    import tempfile
    from pathlib import Path

    from medley.jobs.planning import subject
    from medley.runtimes.local import Pool
    from medley.serving.fleet import ServeOptions, check_pins, even_pins
    from medley.serving.weights_source import open_source
    from medley.transports.control.operator import OperatorClient
    from medley.transports.identity import Credentials

    common = _common(given)
    stages = given["local_stages"]
    names = [f"worker-{n + 1}" for n in range(stages)]
    of = subject(str(open_source(model, whole=True).directory), common["weights"])
    pins = given["pin"] or even_pins(names, of.shape.layers)
    check_pins(pins, of)
    _check_names(pins, "", names)
    with tempfile.TemporaryDirectory(prefix="medley-serve-", ignore_cleanup_errors=True) as folder:
        with Pool(Path(folder), stages, 0) as pool:
            pool.wait_ready()

            def operator() -> OperatorClient:
                return OperatorClient(pool.address["control"], Credentials.load(Path(folder) / "operator.pem"))

            yield ServeOptions(**common, expected=stages, pins=pins, local=True), "127.0.0.1", False, operator


def _check_names(pins: str, machines: str, known: list[str]) -> None:
    """Raises UserError for a machine that nobody knows: a serving would wait for it for ever."""
    from medley.protocol.errors import UserError, did_you_mean
    from medley.roles.front.planning import read_pins

    pinned = [part.machine for one in (read_pins(pins) if pins else ()) for part in one]
    for option, names in (("--pin", pinned), ("--machines", _names(machines))):
        for name in names:
            if name not in known:
                guess = did_you_mean(name, known) if known else "none has joined"
                raise UserError(f"{option} names '{name}', which is no machine here; {guess}")
    outside = next((name for name in pinned if machines and name not in _names(machines)), "")
    if outside:
        raise UserError(f"--pin names '{outside}', which --machines leaves out")
    twice = next((name for name in pinned if pinned.count(name) > 1), "")
    if twice:
        raise UserError(f"--pin names '{twice}' twice; a machine holds one stage")


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _common(given: dict[str, Any]) -> dict[str, Any]:
    return {
        "weights": given["weights"] or ("fp32" if given["dtype"] == "fp32" else "bf16"),
        "objective": given["objective"],
        "kv_tokens": given["kv_tokens"],
        "survive": given["survive"],
        "draft": given["draft"],
        "draft_model": given["draft_model"],
        "priority": given["priority"],
        "wire": given["wire"],
    }


def _run(asking: Asking, given: dict[str, Any], sock: Any, name: str, words: Wording, engine: Answering) -> None:
    from medley.protocol.hosts import is_loopback
    from medley.serving.api import make_app
    from medley.serving.guard import LOCAL_NAMES, Guard, require_key
    from medley.serving.server import run_server, url_of

    key = require_key(given["host"], given["api_key"])
    names = (*LOCAL_NAMES, given["host"]) if is_loopback(given["host"]) else None
    app = Guard(make_app(words, name, engine), key, names)
    made = key if given["api_key"] == "auto" else None
    run_server(app, sock, lambda: announce(name, url_of(sock), made, asking.as_json))

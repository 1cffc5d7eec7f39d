"""The layout for a model on these machines, with what it should do, what else was weighed, and who stays out and why.

Exact by its cost model up to six machines (`search`). A person's pins replace the search; everything else is the same.
"""

from __future__ import annotations

from collections.abc import Sequence

from medley.policies.decision import Decision
from medley.policies.pipeline.describe import (
    Alternative,
    Kind,
    Layout,
    LeftOut,
    Links,
    Machine,
    ModelShape,
    Plan,
    StagePlan,
    Wanted,
    layout_of,
)
from medley.policies.pipeline.ground import Ground, ground
from medley.policies.pipeline.group import Group, best_group, ordered
from medley.policies.pipeline.pins import read_pins
from medley.policies.pipeline.predict import predict
from medley.policies.pipeline.search import Found, best_of, search

GIB = 1 << 30
KINDS: tuple[Kind, ...] = ("single", "replicas", "split", "replicas of splits")


def plan(
    model: ModelShape, machines: Sequence[Machine], links: Links, wanted: Wanted, pins: str = ""
) -> Decision[Plan | None]:
    """The best layout; None, with the reason, where the machines together cannot hold the model.

    Raises UserError for pins that cannot be.
    """
    here = ground(model, machines, links, wanted)
    found = {kind: _in_order(here, one) for kind, one in search(here).items()}
    others = tuple(_alternative(here, kind, found.get(kind)) for kind in KINDS)
    if pins:
        layout = read_pins(here, pins)
        out = tuple(LeftOut(m.name, "not pinned") for m in machines if m.name not in layout.machines)
        made = Plan(layout, predict(here, layout), out, others)
        return Decision(made, f"{_where(layout)}: pinned by hand; {_against(here, made, best_of(found))}")
    best = best_of(found)
    if best is None:
        return Decision(None, _too_small(here))
    layout = _layout(here, best)
    made = Plan(layout, predict(here, layout), _left_out(here, best), others)
    return Decision(made, f"{_where(layout)}: {_why(here, best, found)}")


def value(here: Ground, layout: Layout) -> float:
    """Tokens a second by the objective."""
    told = predict(here, layout)
    return told.stream_tokens_per_s if here.wanted.objective == "latency" else told.tokens_per_s


def _in_order(here: Ground, found: Found) -> Found:
    return Found(tuple(ordered(here, g) for g in sorted(found.groups, key=lambda g: (-g.rate, g.members))))


def _layout(here: Ground, found: Found) -> Layout:
    return layout_of(
        tuple(tuple(zip(here.names(g.members), g.counts, strict=True)) for g in found.groups),
    )


def _alternative(here: Ground, kind: Kind, found: Found | None) -> Alternative:
    if found is None:
        return Alternative(kind, None, 0.0)
    layout = _layout(here, found)
    return Alternative(kind, layout, value(here, layout))


def _where(layout: Layout) -> str:
    def pipeline(one: tuple[StagePlan, ...]) -> str:
        return ", ".join(f"{s.machine} {s.first}-{s.end - 1}" for s in one)

    return f"{layout.kind}, layers " + " / ".join(pipeline(one) for one in layout.replicas)


def _why(here: Ground, best: Found, found: dict[Kind, Found]) -> str:
    rates = {kind: one.rate for kind, one in found.items() if kind != best.kind and one.rate < best.rate}
    runner = max(rates, key=lambda kind: rates[kind], default=None)
    says = f"{_rate(best.rate)} tokens/s" + (" for one stream" if here.wanted.objective == "latency" else "")
    if runner:
        return f"{says}; the best {_article(runner)} would do {_rate(rates[runner])}"
    if best.kind == "split" and "single" not in found:
        return f"{says}; no machine holds the model's {here.model.nbytes / GIB:.1f} GiB alone"
    return says


def _rate(tokens_per_s: float) -> str:
    return f"{tokens_per_s:.0f}" if tokens_per_s >= 100 else f"{tokens_per_s:.3g}"


def _article(kind: Kind) -> str:
    return {"single": "single machine"}.get(kind, kind)


def _against(here: Ground, made: Plan, best: Found | None) -> str:
    if best is None:
        return "the planner found nothing that fits"
    ours, theirs = value(here, made.layout), value(here, _layout(here, best))
    return f"{_rate(ours)} tokens/s, the planner's own choice would do {_rate(theirs)}"


def _too_small(here: Ground) -> str:
    need = here.model.layers * (here.model.layer_nbytes + here.wanted.kv_tokens * here.model.kv_nbytes)
    need += here.model.ends_nbytes(True, True)
    have = sum(max(0, m.memory_nbytes - here.wanted.process_nbytes) for m in here.machines)
    return (
        f"{here.model.name} needs {need / GIB:.1f} GiB with {here.wanted.kv_tokens} tokens of KV cache, and the "
        f"{len(here.machines)} machines have {have / GIB:.1f} GiB for it, in pieces that must hold whole layers: "
        "add a machine, serve in int8 or int4, or promise fewer tokens"
    )


# -- who stays out ------------------------------------------------------------------------------------------------


def _left_out(here: Ground, best: Found) -> tuple[LeftOut, ...]:
    used = {i for g in best.groups for i in g.members}
    return tuple(LeftOut(m.name, _reason(here, best, i)) for i, m in enumerate(here.machines) if i not in used)


def _reason(here: Ground, best: Found, i: int) -> str:
    if here.cap(i, False, False) < 1:
        need = here.wanted.process_nbytes + here.model.layer_nbytes + here.wanted.kv_tokens * here.model.kv_nbytes
        return (
            f"one layer with its KV cache needs {need / GIB:.2f} GiB, it has {here.machines[i].memory_nbytes / GIB:.2f}"
        )
    group = best.groups[-1]
    if len(group.members) >= here.model.layers:
        return f"each of the {here.model.layers} layers has a machine of its own already"
    joined = best_group(here, (*group.members, i))
    if joined is None:
        return "it has no room beside the others"
    return _joined(here, group, ordered(here, joined), i)


def _joined(here: Ground, group: Group, joined: Group, i: int) -> str:
    if here.wanted.objective == "latency":
        return f"with it a token takes {joined.seconds * 1e3:.3g} ms instead of {group.seconds * 1e3:.3g} ms"
    slow = joined.seconds
    if slow >= group.seconds:
        return (
            f"with it the slowest stage or link takes {slow * 1e3:.3g} ms a micro-batch "
            f"instead of {group.seconds * 1e3:.3g} ms"
        )
    return f"it would not add a whole layer's worth ({slow * 1e3:.3g} ms instead of {group.seconds * 1e3:.3g} ms)"

"""The stage role by itself: words in, effects out; order, fences, copies."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from medley.protocol.messages import Address
from medley.protocol.stages.events import (
    Arrived,
    Compute,
    Computed,
    Do,
    Export,
    Forget,
    Halt,
    Import,
    Met,
    Post,
    Refused,
    Reject,
    Said,
    Unjoined,
)
from medley.protocol.stages.words import (
    NOWHERE,
    Alive,
    AskHeld,
    Draw,
    Drawn,
    Ended,
    Free,
    Held,
    Hop,
    Layout,
    Load,
    Loaded,
    Missing,
    Opening,
    Pass,
    Position,
    Probe,
    Refusal,
    Replicate,
    Row,
    Shadow,
)
from medley.roles.stage import PARKED_MAX, QUEUE_MAX, Stage
from medley.roles.stage_copies import ASK_AGAIN_NS

FRONT = Address("tcp://front:1", "")
WHERE = {name: Address(f"tcp://{name}:1", "") for name in "abcd"}


def layout(generation: int, *spans: tuple[str, int, int]) -> Layout:
    hops = tuple(Hop(place, node, WHERE[node], first, end) for place, (node, first, end) in enumerate(spans))
    return Layout(generation, hops, FRONT, "fp32")


def passing(
    generation: int = 1,
    batch: int = 1,
    place: int = 0,
    rows: tuple[Row, ...] = (Row(1, 0, 4, 1),),
    opens: tuple[int, ...] | None = None,
    frees: tuple[int, ...] = (),
) -> Pass:
    """It opens its own rows, if nothing else is said."""
    opens = tuple(row.request for row in rows) if opens is None else opens
    openings = tuple(Opening(request, 0.0, 1.0, 0, 0, 0, -1, 0, 0) for request in opens)
    return Pass(generation, batch, place, rows, openings, frees, "tokens", 0, ())


class Script:
    """A stage, and a shorthand for what is said to it."""

    def __init__(self, node: str = "a", *spans: tuple[str, int, int]) -> None:
        self.stage = Stage(node)
        self.now_ns = 0
        self.hear(layout(1, *(spans or (("a", 0, 2), ("b", 2, 4)))))

    def hear(self, word: Any, body: Any = None) -> list[Any]:
        return self.handle(Arrived(word, body))

    def handle(self, event: Any) -> list[Any]:
        return self.stage.handle(event, self.now_ns)

    def computed(self, word: Pass, **named: Any) -> list[Any]:
        self.hear(word, "body")
        return self.handle(Computed(word, **named))


def shadow(request: int = 1, start: int = 0, count: int = 4, first: int = 0, end: int = 2) -> Shadow:
    return Shadow(WHERE["a"], request, first, end, start, count, 1, 1, "fp32")


# -- order ----------------------------------------------------------------------------------------------------------


def test_a_pass_is_computed_and_its_hidden_states_go_to_the_next_hop() -> None:
    script, word = Script(), passing()
    assert script.hear(word, "tokens") == [Compute(word, 0, 2, "tokens")]
    script.now_ns = 7
    (post,) = script.handle(Computed(word, hidden="hidden"))
    assert post.to == WHERE["b"]
    assert post.body == "hidden"
    assert (post.word.place, post.word.wire, post.word.spent_ns) == (1, "fp32", (7,))


def test_passes_are_computed_one_at_a_time_in_order_of_arrival() -> None:
    script = Script()
    first, second = passing(batch=1), passing(batch=2)
    assert script.hear(first, "1")
    assert script.hear(second, "2") == []
    assert script.handle(Computed(first, hidden="x"))[-1] == Compute(second, 0, 2, "2")


def test_the_last_hop_answers_the_front_with_the_draws_and_what_each_hop_took() -> None:
    script = Script("b")
    word = replace(passing(batch=5, place=1), wire="fp32", width=8, spent_ns=(30,))
    script.hear(word, "hidden")
    script.now_ns = 12
    draw = Draw(1, 4, 99, 0.0, ())
    assert script.handle(Computed(word, draws=(draw,))) == [Post(FRONT, Drawn(1, 5, (draw,), (30, 12)))]


def test_a_next_hop_on_the_same_machine_is_no_post() -> None:
    script, word = Script("a", ("a", 0, 1), ("a", 3, 4)), passing()
    (compute,) = script.computed(word, hidden="kept")
    assert isinstance(compute, Compute)
    assert (compute.first, compute.end, compute.body, compute.word.place) == (3, 4, "kept", 1)


def test_a_refusal_goes_to_the_front_and_nothing_goes_on() -> None:
    script, word = Script(), passing()
    (post,) = script.computed(word, refused=Refused(1, "gap", 3, "too far"))
    assert post == Post(FRONT, Refusal(1, 1, 0, 1, "gap", 3, "too far"))


def test_a_pass_whose_request_was_never_opened_here_is_refused_and_the_next_one_computed() -> None:
    """It holds copied KV of that request, but the pass that says how its tokens are drawn was lost on its way."""
    script = Script("b")
    script.hear(shadow(1, 0, 8, 2, 4))
    script.hear(layout(2, ("a", 0, 2), ("b", 2, 4)))
    lost = passing(2, 1, 1, (Row(1, 8, 1, 1),), opens=(), frees=(7,))
    refusal = Refusal(2, 1, 1, 1, "gap", 0, "the pass that opened request 1 never came")
    assert script.hear(lost, "hidden") == [Forget((7,)), Post(FRONT, refusal)]
    word = passing(2, 2, 1, (Row(1, 8, 1, 1),))
    assert script.hear(word, "hidden") == [Compute(word, 2, 4, "hidden")]


def test_a_pass_for_somebody_elses_hop_or_beyond_the_queue_is_rejected() -> None:
    script = Script()
    assert isinstance(script.hear(passing(place=1))[0], Reject)
    assert isinstance(script.hear(passing(place=9))[0], Reject)
    script.hear(passing())
    for batch in range(QUEUE_MAX):
        assert script.hear(passing(batch=batch)) == []
    assert isinstance(script.hear(passing())[0], Reject)


# -- generations ----------------------------------------------------------------------------------------------------


def test_a_pass_of_an_older_generation_changes_nothing() -> None:
    script = Script()
    script.hear(layout(5, ("a", 0, 4)))
    assert script.hear(passing(generation=4, opens=(1,))) == []
    assert script.stage.requests == 0


def test_a_pass_of_a_newer_generation_waits_for_its_layout() -> None:
    script, early = Script(), passing(generation=2)
    assert script.hear(early, "early") == []
    assert script.hear(layout(2, ("a", 0, 4))) == [Compute(early, 0, 4, "early")]


def test_only_so_many_early_passes_are_kept() -> None:
    script = Script()
    for batch in range(PARKED_MAX + 5):
        script.hear(passing(generation=2, batch=batch))
    script.hear(layout(2, ("a", 0, 4)))
    assert script.stage.queue == PARKED_MAX - 1


def test_an_older_layout_or_the_same_again_changes_nothing() -> None:
    script = Script()
    new = layout(3, ("a", 0, 4))
    script.hear(new)
    assert script.hear(layout(2, ("b", 0, 4))) == script.hear(layout(3, ("b", 0, 4))) == []
    assert script.stage.layout is new


def test_a_new_layout_clears_the_queue_and_what_was_computed_for_the_old_one_goes_nowhere() -> None:
    script, old, queued = Script(), passing(batch=1), passing(batch=2)
    script.hear(old)
    script.hear(queued)
    assert script.hear(layout(2, ("a", 0, 4))) == []
    assert script.handle(Computed(old, hidden="late")) == []
    assert script.stage.queue == 0


# -- words for the engine, words for the front ------------------------------------------------------------------------


def test_a_load_is_done_and_its_end_is_said_to_the_front_that_was_met() -> None:
    stage, load = Stage("a"), Load(1, "{}", 0, 2, 100)
    done = Loaded(1, 0, 2, 10, 0.5)
    assert stage.handle(Arrived(load), 0) == [Do(load)]
    assert stage.handle(Said(done), 0) == []
    stage.handle(Met(FRONT), 0)
    assert stage.handle(Said(done), 0) == [Post(FRONT, done)]


def test_freed_requests_are_forgotten() -> None:
    script = Script()
    script.computed(passing(opens=(1, 2)), hidden="x")
    assert script.hear(Free((1,))) == [Forget((1,))]
    assert script.stage.requests == 1


def test_a_word_for_a_front_is_rejected() -> None:
    assert isinstance(Script().hear(Loaded(1, 0, 2, 10, 0.5))[0], Reject)


# -- probes ---------------------------------------------------------------------------------------------------------


def test_a_probe_is_answered_for_every_hop_here_and_passed_on() -> None:
    script = Script("a", ("a", 0, 1), ("a", 2, 3), ("b", 3, 4))
    script.hear(passing(rows=(Row(1, 0, 1, 1),)))
    script.now_ns = 40
    assert script.hear(Probe(1, 9, 0)) == [
        Post(FRONT, Alive(1, 9, 0, 40)),
        Post(FRONT, Alive(1, 9, 1, 40)),
        Post(WHERE["b"], Probe(1, 9, 2)),
    ]


def test_a_probe_of_another_generation_is_not_answered() -> None:
    assert Script().hear(Probe(2, 9, 0)) == Script().hear(Probe(0, 9, 0)) == Script().hear(Probe(1, 9, 7)) == []


# -- copies that others get -------------------------------------------------------------------------------------------


COPY = Replicate(1, 0, 2, "c", WHERE["c"])


def test_whoever_is_to_have_a_copy_gets_everything_and_then_what_each_pass_adds() -> None:
    script = Script()
    script.computed(passing(opens=(1, 2), rows=(Row(1, 0, 4, 1), Row(2, 0, 2, 1))), hidden="x")
    assert script.hear(COPY) == [Export(r, 0, 2, 0, -1, WHERE["c"]) for r in (1, 2)]
    out = script.computed(passing(batch=2, rows=(Row(1, 4, 1, 1),)), hidden="x")
    assert out[1:] == [Export(1, 0, 2, 4, 1, WHERE["c"])]


def test_the_same_word_again_does_not_begin_a_copy_anew() -> None:
    script = Script()
    script.computed(passing(opens=(1,)), hidden="x")
    assert script.hear(COPY) != []
    assert script.hear(COPY) == []
    assert script.hear(Replicate(2, 0, 2, "c", WHERE["c"])) != []


def test_a_copy_goes_on_from_where_it_ended_when_a_pass_was_not_told_of() -> None:
    script = Script()
    script.hear(COPY)
    script.computed(passing(opens=(1,)), hidden="x")
    late = passing(batch=2, rows=(Row(1, 4, 3, 1),))
    script.hear(late)
    script.hear(layout(2, ("a", 0, 2), ("b", 2, 4)))
    script.handle(Computed(late, hidden="x"))
    out = script.computed(passing(generation=2, batch=3, rows=(Row(1, 7, 1, 1),)), hidden="x")
    assert out[1:] == [Export(1, 0, 2, 4, 4, WHERE["c"])]


def test_a_request_that_begins_as_a_copy_of_another_is_copied_from_its_beginning() -> None:
    script = Script()
    script.hear(COPY)
    out = script.computed(passing(opens=(7,), rows=(Row(7, 100, 5, 1),)), hidden="x")
    assert out[1:] == [Export(7, 0, 2, 0, 105, WHERE["c"])]


def test_a_draft_is_copied_only_when_a_later_row_shows_that_it_came_true() -> None:
    script = Script()
    script.hear(COPY)
    script.computed(passing(opens=(1,)), hidden="x")
    drafted = script.computed(passing(batch=2, rows=(Row(1, 4, 5, 5),)), hidden="x")
    assert drafted[1:] == [Export(1, 0, 2, 4, 1, WHERE["c"])]
    after = script.computed(passing(batch=3, rows=(Row(1, 7, 1, 1),)), hidden="x")
    assert after[1:] == [Export(1, 0, 2, 5, 3, WHERE["c"])]


def test_what_may_be_a_draft_is_neither_said_to_be_held_nor_copied_at_first() -> None:
    script = Script()
    script.computed(passing(opens=(1,), rows=(Row(1, 0, 9, 5),)), hidden="x")
    assert script.hear(COPY) == [Export(1, 0, 2, 0, 5, WHERE["c"])]
    said = Held(1, 1, (Position(1, 9), Position(2, 9)))
    assert script.handle(Said(said)) == [Post(FRONT, Held(1, 1, (Position(1, 5), Position(2, 9))))]
    script.computed(passing(batch=2, rows=(Row(1, 6, 1, 1),)), hidden="x")
    believed = Held(2, 1, (Position(1, 7),))
    assert script.handle(Said(believed)) == [Post(FRONT, believed)]


def test_only_the_layers_that_a_copy_wants_are_sent() -> None:
    script = Script("a", ("a", 0, 4))
    script.hear(Replicate(1, 2, 9, "c", WHERE["c"]))
    out = script.computed(passing(opens=(1,)), draws=())
    assert out[1:] == [Export(1, 2, 4, 0, 4, WHERE["c"])]


def test_a_copy_that_is_stopped_gets_nothing_more_but_hears_what_has_ended() -> None:
    script = Script()
    script.hear(COPY)
    script.computed(passing(opens=(1,)), hidden="x")
    assert script.hear(Replicate(2, 0, 2, "d", NOWHERE)) == script.hear(Replicate(2, 0, 1, "c", NOWHERE)) == []
    assert script.hear(Replicate(2, 0, 2, "c", NOWHERE)) == [Halt(0, 2, WHERE["c"])]
    assert len(script.computed(passing(batch=2, rows=(Row(1, 4, 1, 1),)), hidden="x")) == 1
    assert script.hear(Free((1,))) == [Forget((1,)), Post(WHERE["c"], Ended((1,)))]
    assert script.hear(Free((1,))) == [Forget((1,))]


def test_what_a_pass_frees_ends_at_the_copies_too() -> None:
    script = Script()
    script.hear(COPY)
    script.computed(passing(opens=(1,)), hidden="x")
    out = script.hear(passing(batch=2, opens=(2,), frees=(1,), rows=(Row(2, 0, 1, 1),)))
    assert out[0] == Post(WHERE["c"], Ended((1,)))
    assert isinstance(out[1], Compute)


def test_whoever_misses_something_of_a_copy_gets_it_again() -> None:
    script = Script()
    script.hear(COPY)
    script.computed(passing(opens=(1,)), hidden="x")
    assert script.hear(Missing("c", 1, 0, 2, 2)) == [Export(1, 0, 2, 2, -1, WHERE["c"])]
    assert script.hear(Missing("d", 1, 0, 2, 2)) == script.hear(Missing("c", 8, 0, 2, 2)) == []
    assert script.hear(Missing("c", 1, 0, 4, 2)) == []


def test_what_is_missing_is_sent_only_as_far_as_it_is_no_draft() -> None:
    script = Script()
    script.hear(COPY)
    script.computed(passing(opens=(1,), rows=(Row(1, 0, 9, 5),)), hidden="x")
    assert script.hear(Missing("c", 1, 0, 2, 2)) == [Export(1, 0, 2, 2, 3, WHERE["c"])]
    assert script.hear(Missing("c", 1, 0, 2, 5)) == []


# -- copies that come -------------------------------------------------------------------------------------------------


def test_a_copy_is_taken_and_what_does_not_join_is_asked_for_once_in_a_while() -> None:
    script, word = Script("c"), shadow(start=4)
    assert script.hear(word, "kv") == [Import(word, "kv")]
    asked = Post(WHERE["a"], Missing("c", 1, 0, 2, 0))
    assert script.handle(Unjoined(word, 0)) == [asked]
    assert script.handle(Unjoined(word, 0)) == []
    script.now_ns = ASK_AGAIN_NS
    assert script.handle(Unjoined(word, 0)) == [asked]


def test_copies_of_layers_that_are_computed_here_are_not_taken() -> None:
    script = Script()
    script.computed(passing(opens=(1,)), hidden="x")
    assert script.hear(shadow()) == []
    assert script.hear(shadow(request=2)) != []
    assert script.hear(shadow(first=2, end=4)) != []


def test_a_late_copy_of_a_freed_request_is_not_taken_unless_it_begins_anew() -> None:
    script = Script("c")
    script.hear(shadow())
    script.hear(Free((1,)))
    assert script.hear(shadow(start=4)) == []
    assert script.hear(shadow(start=0)) != []


def test_copies_that_have_ended_are_forgotten_but_not_what_is_computed_here() -> None:
    script = Script()
    script.computed(passing(opens=(1,)), hidden="x")
    script.hear(shadow(request=2))
    assert script.hear(Ended((1, 2))) == [Forget((2,))]
    assert script.hear(Ended((2,))) == []


def test_a_copy_that_a_new_layout_goes_on_with_is_not_ended_by_whoever_had_it_before() -> None:
    """Between the word that it is held and the first pass: the machine that went frees its own, and says so."""
    script = Script()
    script.hear(shadow(request=1))
    script.hear(shadow(request=2))
    script.hear(layout(2, ("a", 0, 2), ("b", 2, 4)))
    script.handle(Said(Held(7, 2, (Position(1, 4),))))
    assert script.hear(Ended((1, 2))) == [Forget((2,))]
    assert script.hear(shadow(request=1, start=3, count=1)) == [], "what is late would set it back"
    assert script.hear(Free((1,))) == [Forget((1,))], "the front may"
    script.hear(shadow(request=3))
    script.handle(Said(Held(8, 0, (Position(3, 4),))))
    assert script.hear(Ended((3,))) == [Forget((3,))], "an audit promises nothing"


def test_a_copy_in_place_of_what_was_computed_here_once_is_believed_whole() -> None:
    script = Script()
    script.computed(passing(opens=(1,), rows=(Row(1, 0, 9, 5),)), hidden="x")
    script.hear(layout(2, ("b", 0, 4)))
    script.hear(shadow(count=20))
    said = Held(1, 2, (Position(1, 20),))
    assert script.handle(Said(said)) == [Post(FRONT, said)]


def test_what_is_held_is_counted_by_the_engine() -> None:
    ask = AskHeld(3, 1, 0, 2)
    assert Script().hear(ask) == [Do(ask)]

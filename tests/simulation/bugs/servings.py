"""Planted bugs of the serving: of the front, the stages, and their policies."""
# ruff: noqa: E501 - texts of sources stand here as they are there

from __future__ import annotations

from tests.simulation.bugs.planting import Bug

FRONT = "medley.roles.front."
STAGE = "medley.roles.stage"
COPIES = "medley.roles.stage_copies"


def _bug(name: str, module: str, old: str, new: str, *breaks: str) -> Bug:
    return Bug(name, module, old, new, breaks, serving=True)


SERVINGS = [
    _bug(
        "a stage computes passes of older layouts",
        STAGE,
        "        if word.generation < self.layout.generation:\n            return []\n        if word.generation > ",
        "        if word.generation > ",
        "I3",
    ),
    _bug(
        "what waits at a stage outlives its layout",
        STAGE,
        "        self._queue.clear()\n",
        "",
        "I3",
    ),
    _bug(
        "a stage says what it holds before it knows the layout",
        STAGE,
        "            case AskHeld():\n                return [Do(word)] if word.generation <= self.layout.generation else []",
        "            case AskHeld():\n                return [Do(word)]",
        "I5",
        "I2",
    ),
    _bug(
        "requests go on where they were, whatever is held",
        FRONT + "request",
        "        self.sent = min(held, len(self.tokens) - 1)\n        self.opened",
        "        self.opened",
        "I5",
        "E1",
    ),
    _bug(
        "requests go on at what one hop holds, not all",
        FRONT + "pipeline",
        "request.rewind(min(held.get(request.id, 0) for held in asking.held.values()))",
        "request.rewind(max(held.get(request.id, 0) for held in asking.held.values()))",
        "I5",
        "I2",
    ),
    _bug(
        "a rejected draft is kept",
        FRONT + "request",
        "            if finish or n >= len(drafted) or drafted[n] != draw.token:\n",
        "            if finish or n >= len(drafted):\n",
        "I1",
    ),
    _bug(
        "a draw counts wherever it belongs",
        FRONT + "request",
        "            if draw.position != len(self.tokens):\n                break\n",
        "",
        "I1",
    ),
    _bug(
        "what is drawn depends on where a request was opened",
        FRONT + "request",
        "asked.top_k, asked.seed, asked.choice",
        "asked.top_k, asked.seed + self.sent, asked.choice",
        "I1",
    ),
    _bug(
        "a copy is one token longer than what two requests have in common",
        FRONT + "prefixes",
        "            length = common(other.tokens, tokens, most) if most > found[1] else 0\n",
        "            length = min(most, common(other.tokens, tokens, most) + 1) if most > found[1] else 0\n",
        "I2",
        "I1",
    ),
    _bug(
        "a donor lends what was not sent yet",
        FRONT + "prefixes",
        "            most = min(len(other.tokens), other.sent, len(tokens) - 1)\n",
        "            most = min(len(other.tokens), len(tokens) - 1)\n",
        "I2",
        "I5",
    ),
    _bug(
        "the deadline of a batch never comes",
        FRONT + "pipeline",
        "        late = now_ns - max(oldest.sent_ns, self._last_ns) > self.patience.limit_ns(oldest.tokens)\n",
        "        late = False\n",
        "I5",
    ),
    _bug(
        "a probe that all answer sends nothing again",
        FRONT + "pipeline",
        '        return self.install(self.hops, "a batch was lost on its way", now_ns, now_ns), None\n',
        "        return [], None\n",
        "I5",
    ),
    _bug(
        "a refusal of an older layout counts",
        FRONT + "pipeline",
        '        if word.generation != self.generation or self.state == "down":\n            return []\n        out',
        "        out",
        "I3",
        "I5",
        "E1",
    ),
    _bug(
        "drafts are said to be held",
        COPIES,
        "replace(p, held=min(p.held, known))",
        "replace(p, held=max(p.held, known))",
        "I2",
        "I1",
    ),
    _bug(
        "drafts are copied",
        COPIES,
        "    return row.start + row.count - max(0, row.samples - 1)\n",
        "    return row.start + row.count\n",
        "I2",
        "I1",
    ),
    _bug(
        "a copy begins where the row does",
        COPIES,
        "        start, known = min(row.start, copy.sent.get(row.request, row.start)), _known_end(row)\n",
        "        start, known = row.start, _known_end(row)\n",
        "I2",
        "I5",
    ),
    _bug(
        "what a machine holds too long is never looked for",
        FRONT + "audit",
        "        strange = tuple(p.request for p in word.positions if p.request not in needed)\n",
        "        strange: tuple[int, ...] = ()\n",
        "I4",
    ),
    _bug(
        "what was lost is not said again",
        FRONT + "layouts",
        "        if now_ns - self._again_ns < AGAIN_NS:\n",
        "        if True:\n",
        "I5",
    ),
    _bug(
        "room that a parked request left is never given back",
        FRONT + "pipeline",
        "            del self.requests[request.id]\n            self.kv_tokens = self._promised\n",
        "            del self.requests[request.id]\n",
        "I5",
    ),
    _bug(
        "a machine that came back empty is taken for one that holds its layers",
        "medley.policies.pipeline.repair",
        "        if holder is not None and not holder.taken and holder.layers.issuperset(range(hop.first, hop.end)):\n",
        "        if holder is not None and not holder.taken:\n",
        "E1",
    ),
    _bug(
        "a machine that works for another pipeline is given to one that had it before",
        "medley.policies.pipeline.repair",
        "        if holder is not None and not holder.taken and holder.layers.issuperset(range(hop.first, hop.end)):\n",
        "        if holder is not None and holder.layers.issuperset(range(hop.first, hop.end)):\n",
        "I5",
    ),
    _bug(
        "a request that goes to another pipeline forgets nothing",
        FRONT + "pipeline",
        "        for request in out:\n            request.rewind(0)\n",
        "",
        "I2",
        "I5",
        "E1",
    ),
    _bug(
        "a late copy of what was freed is taken",
        STAGE,
        "        if computed or (word.request in self._freed and word.start > 0):\n",
        "        if computed:\n",
        "I4",
    ),
    _bug(
        "a late copy overwrites what is computed here",
        STAGE,
        "        if computed or (word.request in self._freed and word.start > 0):\n",
        "        if word.request in self._freed and word.start > 0:\n",
        "I2",
    ),
]

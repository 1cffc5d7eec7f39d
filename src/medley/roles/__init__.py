"""Coordinator, worker and shard as pure state machines: `handle(event, now_ns) -> list[Effect]`. Hosted by runtimes."""

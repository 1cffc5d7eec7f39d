"""Who holds which shard, and what happens when one is lost.

With a backup that lives, the backup is promoted and nothing is lost. Without, every shard returns to the last
checkpoint in a new generation, which fences all that came later and opens its leases again. A machine that only
restarts gets a few seconds before another one takes its shards.
"""

from __future__ import annotations

from medley.policies.placement import Host, assign_blocks, choose_hosts
from medley.protocol.engine import SetPeers
from medley.protocol.ids import NodeId
from medley.protocol.messages import AssignShard, AssignWorker, Peers, Relay, Routes
from medley.protocol.records import Placed, Promoted, ShardPlace
from medley.roles.context import BACKUP_PATIENCE_NS, NOWHERE, SHARD_PATIENCE_NS, Context
from medley.roles.roster import ReplicaView, Roster, WorkerView, replica_nodes


def advance(ctx: Context, now_ns: int) -> None:
    """Place, promote or roll back as needed; then bring every machine up to the present generation."""
    _notice_absent_hosts(ctx, now_ns)
    if not ctx.state.places:
        _place(ctx, now_ns)
    elif ctx.lost_shards:
        _promote(ctx)
        if ctx.lost_shards:
            _roll_back(ctx, now_ns)
    if ctx.state.places:
        _seed_backup(ctx, now_ns)
        _enlist(ctx)
    _strike_off_keys(ctx)
    if ctx.state.places:
        _introduce(ctx)


def lose_shard(ctx: Context, node: NodeId, shard: int, reason: str) -> None:
    """A replica's memory is gone."""
    ctx.news += 1
    ctx.roster.replicas.pop((node, shard), None)
    ctx.roster.forget((node, shard))
    if any(p.shard == shard and node in replica_nodes(p) for p in ctx.state.places):
        ctx.lost_shards.setdefault((node, shard), reason)


def expel(ctx: Context, node: NodeId) -> None:
    """A revoked node keeps no shard and no key."""
    for holder, shard in list(ctx.roster.replicas):
        if holder == node:
            lose_shard(ctx, node, shard, f"{node} was revoked")
    for engine in [one for one in ctx.roster.addresses if one[0] == node]:
        ctx.roster.forget(engine)


def _notice_absent_hosts(ctx: Context, now_ns: int) -> None:
    """After a restart of the coordinator, hosts that never come back are lost too."""
    for place in ctx.state.places:
        for node in replica_nodes(place):
            if _connected(ctx, node) or (node, place.shard) in ctx.lost_shards:
                continue
            view = ctx.pool.get(node)
            patience = BACKUP_PATIENCE_NS if place.backup else SHARD_PATIENCE_NS
            if now_ns - (view.lost_ns if view is not None else ctx.began_ns) > patience:
                lose_shard(ctx, node, place.shard, f"{node} did not come back")


def _place(ctx: Context, now_ns: int) -> None:
    spec = ctx.prepared.spec.placement
    hosts = hosts_of(ctx)
    decision = choose_hosts(hosts, spec.shards, spec.replication, {})
    ctx.broken_ns = ctx.broken_ns or now_ns
    early = now_ns - min(ctx.broken_ns, ctx.shared.joined_ns) < SHARD_PATIENCE_NS  # others may be about to join
    if decision.plan is None or (early and len(hosts) < spec.shards * spec.replication):
        wanted = spec.shards * spec.replication
        ctx.explain(ctx.job, f"waits for machines that hold parameters: {len(hosts)} of {wanted} are here")
        return
    blocks = assign_blocks(ctx.prepared.layout().blocks, dict.fromkeys(range(spec.shards), 1.0))
    places = tuple(ShardPlace(s, p, b, blocks[s]) for s, (p, b) in sorted(decision.plan.items()))
    ctx.persist(Placed(1, 0, places, decision.reason))
    ctx.explain(ctx.job, decision.reason)
    begin_generation(ctx, now_ns)


def _promote(ctx: Context) -> None:
    """Backups of lost primaries take over; lost backups are struck off."""
    for place in list(ctx.state.places):
        if not place.backup:
            continue
        primary_lost = (place.primary, place.shard) in ctx.lost_shards
        backup_lost = (place.backup, place.shard) in ctx.lost_shards
        if primary_lost == backup_lost:
            continue
        stays = place.backup if primary_lost else place.primary
        gone = place.primary if primary_lost else place.backup
        view = ctx.roster.replicas.get((stays, place.shard))
        if view is None or not view.ready:
            continue
        reason = (
            f"shard {place.shard}: {gone} was lost ({ctx.lost_shards.pop((gone, place.shard))}); {stays} has it all"
        )
        ctx.persist(Promoted(place.shard, stays, "", reason))
        ctx.explain(ctx.job, reason)
        if primary_lost:
            ctx.forget_pins()


def _seed_backup(ctx: Context, now_ns: int) -> None:
    """A shard that lost its backup gets another one, from a checkpoint of the present version; commits wait for it.

    The new replica then holds all that the primary holds: the parameters by the checkpoint, staged parts by the relay,
    and nothing can be committed until it has said so, since a commit needs every replica.
    """
    alone = [p for p in ctx.state.places if not p.backup] if ctx.prepared.spec.placement.replication == 2 else []
    if alone:
        spares = {h.node for h in hosts_of(ctx)}
        alone = [p for p in alone if spares - {p.primary}]
    quiet = now_ns - ctx.seeded_ns > SHARD_PATIENCE_NS
    if not alone or ctx.state.state != "running" or not ctx.shards_ready() or not (quiet or ctx.seeding >= 0):
        ctx.seeding = -1
        return
    place = alone[0]
    ctx.seeding = place.shard
    if ctx.state.checkpoints[-1].version < ctx.state.version:
        ctx.save_now = True
        return
    keep = {p.shard: (p.primary, p.backup) for p in ctx.state.places}
    chosen = choose_hosts(hosts_of(ctx), ctx.prepared.spec.placement.shards, 2, keep).plan
    if chosen is None:
        return
    backup = chosen[place.shard][1]
    reason = f"shard {place.shard}: {backup} becomes the backup of {place.primary}, from checkpoint {ctx.state.version}"
    ctx.persist(Promoted(place.shard, place.primary, backup, reason))
    ctx.explain(ctx.job, reason)
    ctx.seeding, ctx.seeded_ns = -1, now_ns


def _roll_back(ctx: Context, now_ns: int) -> None:
    ctx.broken_ns = ctx.broken_ns or now_ns
    lost_hosts = {node for node, _ in ctx.lost_shards}
    waiting = [n for n in sorted(lost_hosts) if not _is_host(ctx, n) and not ctx.taken(n)]
    if waiting and now_ns - ctx.broken_ns < SHARD_PATIENCE_NS:
        ctx.explain(ctx.job, f"waits for {', '.join(waiting)} to return with its shard")
        return
    spec = ctx.prepared.spec.placement
    keep = {p.shard: (p.primary, p.backup) for p in ctx.state.places}
    decision = choose_hosts(hosts_of(ctx), spec.shards, spec.replication, keep)
    if decision.plan is None:
        ctx.explain(ctx.job, f"waits for machines: {decision.reason}")
        return
    version = ctx.state.checkpoints[-1].version
    why = "; ".join(f"shard {s} on {n}: {r}" for (n, s), r in sorted(ctx.lost_shards.items()))
    reason = f"back to checkpoint {version} from version {ctx.state.version}: {why}"
    blocks = {p.shard: p.blocks for p in ctx.state.places}
    places = tuple(ShardPlace(s, p, b, blocks[s]) for s, (p, b) in sorted(decision.plan.items()))
    ctx.persist(Placed(ctx.generation + 1, version, places, reason))
    ctx.explain(ctx.job, reason)
    begin_generation(ctx, now_ns)


def begin_generation(ctx: Context, now_ns: int) -> None:
    """Nothing volatile survives a rollback, except where the engines listen."""
    old = ctx.roster
    ctx.roster = Roster(
        addresses=old.addresses,
        lives=old.lives,
        numbers=old.numbers,
        keys_number=old.keys_number,
        listed_too_many=old.listed_too_many,
        lists=old.lists,
    )
    ctx.forget_pins()
    ctx.saving = None
    ctx.lost_shards.clear()
    ctx.reload = False
    ctx.broken_ns = 0
    ctx.round_size.clear()
    ctx.round_opened_ns = now_ns
    ctx.granted_ns.clear()
    ctx.seeding = -1
    ctx.mark_ns = 0


def _enlist(ctx: Context) -> None:
    """Tell every connected machine its part in this generation, once."""
    for place in ctx.state.places:
        for node in replica_nodes(place):
            key = (node, place.shard)
            if key not in ctx.roster.replicas and key not in ctx.lost_shards and _connected(ctx, node):
                ctx.roster.replicas[key] = ReplicaView(node, place.shard)
                ctx.news += 1
                ctx.send(node, _shard_assignment(ctx, place))
    if len(ctx.roster.workers) >= len(ctx.allotted):
        return
    for node in sorted(ctx.allotted - ctx.roster.workers.keys()):
        if _connected(ctx, node) and may_train(ctx, node):
            ctx.roster.workers[node] = WorkerView(node)
            ctx.news += 1
            ctx.been.add(node)
            threads = ctx.prepared.spec.train.threads
            ctx.send(node, AssignWorker(ctx.job, ctx.generation, ctx.state.plan, threads))


def may_train(ctx: Context, node: NodeId) -> bool:
    """A worker that is here, or only away for a moment, and was not found unfit for this job."""
    view = ctx.pool.get(node)
    if view is None:
        return False
    return view.capability.worker and not (view.revoked or view.given_up or ctx.unfit_reason(node))


def _shard_assignment(ctx: Context, place: ShardPlace) -> AssignShard:
    version = ctx.state.checkpoints[-1].version
    threads = ctx.prepared.spec.train.threads
    return AssignShard(ctx.job, ctx.generation, place.shard, ctx.state.plan, place.blocks, version, threads)


def _strike_off_keys(ctx: Context) -> None:
    """Whoever is gone is on no list any more, whatever becomes of it later: everybody who admits it hears a new one."""
    if ctx.roster.listed_too_many:
        ctx.roster.relist()
        ctx.run(SetPeers(ctx.roster.keys_number, ctx.roster.keys(), ctx.vault))


def _introduce(ctx: Context) -> None:
    """Keys to shards, backups to primaries, routes to workers: each when the other side is ready for it."""
    roster = ctx.roster
    stamp = (ctx.news, roster.vault_number, roster.keys_number)
    if roster.vault_number < 0 or ctx.introduced == stamp:
        return
    ctx.introduced = stamp
    number = min(roster.vault_number, roster.keys_number)
    for replica in roster.replicas.values():
        known = roster.numbers.get((replica.node, replica.shard))
        if known is not None and known <= number and replica.told_peers < number:
            replica.told_peers = number
            ctx.send(replica.node, Peers(ctx.job, ctx.generation, replica.shard, number, roster.keys(), ctx.vault))
    for place in ctx.state.places:
        _introduce_backup(ctx, place)
    routes = roster.routes(ctx.state.places)
    if not routes:
        return
    for node, worker in roster.workers.items():
        if worker.routes is not routes and worker.routes != routes and roster.admitted((node, -1)):
            worker.routes = routes
            ctx.send(node, Routes(ctx.job, ctx.generation, routes, ctx.vault))


def _introduce_backup(ctx: Context, place: ShardPlace) -> None:
    """Tell a primary whom to pass its parts on to, once both are admitted; or that there is nobody any more."""
    primary = ctx.roster.replicas.get((place.primary, place.shard))
    if primary is None:
        return
    backup = ctx.roster.addresses.get((place.backup, place.shard), NOWHERE)
    if primary.told_relay == backup or (backup == NOWHERE and primary.told_relay is None):
        return
    admitted = all(ctx.roster.admitted((node, place.shard)) for node in replica_nodes(place))
    if backup == NOWHERE or admitted:
        primary.told_relay = backup
        ctx.send(place.primary, Relay(ctx.job, ctx.generation, place.shard, backup))


def hosts_of(ctx: Context) -> list[Host]:
    """Machines that may hold shards of this job: its own, and those that keep parameters for everybody."""
    found = []
    for node in sorted({*ctx.allotted, *ctx.shared.keepers, *ctx.hosts}):
        if _is_host(ctx, node):
            view = ctx.pool[node]
            others = sum(n for job, n in ctx.shared.hosting.get(node, {}).items() if job != ctx.job)
            found.append(Host(node, view.capability.memory_bytes, view.capability.worker, others))
    return found


def _is_host(ctx: Context, node: NodeId) -> bool:
    view = ctx.pool.get(node)
    if view is None or not view.connected or view.revoked or not view.capability.shard:
        return False
    return view.keeper or node in ctx.allotted or (node in ctx.hosts and not ctx.taken(node))


def _connected(ctx: Context, node: NodeId) -> bool:
    view = ctx.pool.get(node)
    return view is not None and view.connected

"""Certificates verify as TLS verifies them, tokens are redeemed once, and keys are readable by their owner
only."""

from __future__ import annotations

import os
import ssl
import stat
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.processes import running

from medley.protocol.errors import PeerError, UserError
from medley.transports.identity import (
    SERVER_NAME,
    Authority,
    Credentials,
    Granted,
    Peer,
    Refused,
    certificate_facts,
    create_token,
    key_fingerprint,
    needs_renewal,
    new_key,
    node_name,
    parse_token,
    peer_identity,
    redeem,
    signing_request,
)

NS_PER_S = 1_000_000_000
DAY_NS = 24 * 3600 * NS_PER_S
NOW_NS = 1_800_000_000 * NS_PER_S


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.open(tmp_path_factory.mktemp("authority"), NOW_NS)


def context(purpose: int, credentials: Credentials, room: Path) -> ssl.SSLContext:
    made = ssl.SSLContext(purpose)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.load_verify_locations(cadata=credentials.authority_pem.decode())
    made.verify_mode = ssl.CERT_REQUIRED
    # OpenSSL reads the machine's clock, the certificates here live at NOW_NS: only their times go unchecked.
    made.verify_flags |= 0x200000
    chain = room / f"{credentials.peer.name}.pem"
    chain.write_bytes(credentials.key_pem + credentials.cert_pem)
    made.load_cert_chain(chain)
    return made


def handshake(server: Credentials, client: Credentials, host: str, room: Path) -> bytes:
    """Both ends of a TLS handshake in memory; returns the client's certificate as the server verified it."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    serving = context(ssl.PROTOCOL_TLS_SERVER, server, room).wrap_bio(to_server, to_client, server_side=True)
    calling = context(ssl.PROTOCOL_TLS_CLIENT, client, room).wrap_bio(to_client, to_server, server_hostname=host)
    pending = {serving, calling}
    while pending:
        for end in list(pending):
            try:
                end.do_handshake()
                pending.discard(end)
            except ssl.SSLWantReadError:
                continue
    certificate = serving.getpeercert(binary_form=True)
    assert certificate is not None
    return certificate


@pytest.mark.parametrize("host", ["lab.example.org", "10.1.2.3", "localhost", "127.0.0.1", "::1", SERVER_NAME])
def test_both_ends_verify_each_other_at_every_name(authority: Authority, host: str, tmp_path: Path) -> None:
    server = authority.serve("main", ["lab.example.org", "10.1.2.3"], NOW_NS)
    node = authority.enrol("w1", "node", NOW_NS)
    assert peer_identity(handshake(server, node, host, tmp_path)) == Peer("w1", "node")
    assert server.peer == Peer("main", "coordinator")


def test_a_host_that_is_not_named_is_refused(authority: Authority, tmp_path: Path) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(
            authority.serve("main", [], NOW_NS),
            authority.enrol("w1", "node", NOW_NS),
            "elsewhere.example.org",
            tmp_path,
        )


def test_a_node_cannot_pose_as_the_coordinator(authority: Authority, tmp_path: Path) -> None:
    thief = authority.enrol("localhost", "node", NOW_NS)
    with pytest.raises(ssl.SSLError, match="certificate verify failed|unsuitable|purpose"):
        handshake(thief, authority.enrol("w1", "node", NOW_NS), "localhost", tmp_path)


def test_a_certificate_of_another_pool_is_refused(authority: Authority, tmp_path: Path) -> None:
    other = Authority.open(tmp_path / "other", NOW_NS)
    foreign = replace(other.enrol("w1", "node", NOW_NS), authority_pem=authority.certificate_pem)
    with pytest.raises(ssl.SSLError):
        handshake(authority.serve("main", [], NOW_NS), foreign, "localhost", tmp_path)
    request = signing_request(new_key())
    with pytest.raises(PeerError, match="not issued by this pool"):
        authority.renew(request, foreign.cert_pem, NOW_NS)


def test_the_authority_is_made_once_and_kept_private(tmp_path: Path) -> None:
    first = Authority.open(tmp_path / "state", NOW_NS)
    assert Authority.open(tmp_path / "state", NOW_NS + 1).certificate_pem == first.certificate_pem
    certificate = x509.load_pem_x509_certificate(first.certificate_pem)
    assert (certificate.not_valid_after_utc - certificate.not_valid_before_utc).days == 3651
    assert [file.name for file in (tmp_path / "state").iterdir()] == ["authority.pem"]
    if os.name == "posix":
        path = tmp_path / "state" / "authority.pem"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        path.chmod(0o640)
        with pytest.raises(UserError, match="chmod 600"):
            Authority.open(tmp_path / "state", NOW_NS)


def test_two_processes_that_start_at_once_share_one_authority(tmp_path: Path) -> None:
    script = (
        "from medley.transports.identity import Authority\n"
        f"print(Authority.open({str(tmp_path)!r}, {NOW_NS}).fingerprint)"
    )
    command = [sys.executable, "-c", script]
    with ExitStack() as stack:
        racers = [stack.enter_context(running(command)) for _ in range(3)]
        assert len({racer.communicate(timeout=60)[0] for racer in racers}) == 1
        assert all(racer.returncode == 0 for racer in racers)


@pytest.mark.parametrize("content", [b"", b"garbage", b"-----BEGIN CERTIFICATE-----\nAAAA\n"])
def test_a_damaged_authority_is_one_sentence(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "authority.pem"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(UserError, match="does not hold the pool's authority"):
        Authority.open(tmp_path, NOW_NS)


def test_credentials_are_kept_in_one_private_file(authority: Authority, tmp_path: Path) -> None:
    path = tmp_path / "new" / "node.pem"
    first, second = (authority.enrol("w1", "node", NOW_NS) for _ in range(2))
    first.save(path)
    second.save(path)
    assert Credentials.load(path) == second
    assert "PRIVATE" not in repr(second)
    assert [file.name for file in path.parent.iterdir()] == ["node.pem"]
    if os.name == "posix":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    replace(first, key_pem=second.key_pem).save(path)
    with pytest.raises(UserError, match="do not belong together"):
        Credentials.load(path)
    with pytest.raises(UserError, match="cannot be read"):
        Credentials.load(tmp_path / "missing.pem")


def test_a_node_renews_at_two_thirds_of_its_life_and_keeps_its_name(authority: Authority) -> None:
    key = new_key()
    request = signing_request(key, "a wish that is ignored")
    certificate = authority.issue(request, "w1", "node", NOW_NS, life_s=3 * 24 * 3600)
    facts = certificate_facts(certificate)
    assert (facts.peer, facts.key_fingerprint) == (Peer("w1", "node"), key_fingerprint(request))
    assert facts.not_after_ns == NOW_NS + 3 * DAY_NS
    assert not needs_renewal(certificate, NOW_NS + 2 * DAY_NS - NS_PER_S)
    assert needs_renewal(certificate, NOW_NS + 2 * DAY_NS)
    renewed = authority.renew(signing_request(new_key()), certificate, NOW_NS + 2 * DAY_NS)
    assert peer_identity(renewed) == Peer("w1", "node")
    assert certificate_facts(renewed).serial != facts.serial
    with pytest.raises(PeerError, match="has ended"):
        authority.renew(request, certificate, NOW_NS + 4 * DAY_NS)


def test_a_signing_request_must_prove_a_key_of_ours(authority: Authority) -> None:
    def request(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
        builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        algorithm = hashes.SHA256() if isinstance(key, ec.EllipticCurvePrivateKey) else None
        return builder.sign(key, algorithm).public_bytes(serialization.Encoding.PEM)

    good = bytearray(x509.load_pem_x509_csr(signing_request(new_key())).public_bytes(serialization.Encoding.DER))
    good[-1] ^= 1
    forged = x509.load_der_x509_csr(bytes(good)).public_bytes(serialization.Encoding.PEM)
    for bad, reason in (
        (request(ec.generate_private_key(ec.SECP384R1())), "P-256"),
        (request(ed25519.Ed25519PrivateKey.generate()), "P-256"),
        (forged, "not signed by the key"),
        (b"garbage", "cannot be read"),
        (bytes(20_000), "over the limit"),
    ):
        with pytest.raises(PeerError, match=reason):
            authority.issue(bad, "w1", "node", NOW_NS)
    with pytest.raises(UserError, match="cannot be a name"):
        authority.issue(signing_request(new_key()), "a/b", "node", NOW_NS)
    with pytest.raises(ValueError, match="role"):
        authority.issue(signing_request(new_key()), "w1", "coordinator", NOW_NS)


def test_a_name_cannot_be_claimed_with_another_key() -> None:
    mine, theirs = (key_fingerprint(signing_request(new_key())) for _ in range(2))
    assert node_name("Anna's laptop", mine) == f"Anna-s-laptop-{mine[:8]}"
    assert node_name("x" * 200, mine) != node_name("x" * 200, theirs)
    assert len(node_name("x" * 200, mine)) <= 63
    assert node_name("///", mine) == f"node-{mine[:8]}"


def test_a_token_survives_a_clipboard_and_carries_the_authority(authority: Authority) -> None:
    token, stored = create_token(authority.certificate_pem, ["10.1.2.3:7420", "lab:7420"], NOW_NS)
    text = token.text()
    parsed = parse_token(f"  {text[:70]}\n{text[70:]} \n")
    assert parsed == token
    assert parsed.fingerprint == authority.fingerprint
    assert token.secret not in repr(token) and token.secret not in repr(stored)
    assert len(text) < 1500


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_damaged_token_is_one_sentence(data: st.DataObject, authority: Authority) -> None:
    text = create_token(authority.certificate_pem, ["10.1.2.3:7420"], NOW_NS)[0].text()
    place = data.draw(st.integers(8, len(text) - 1))
    damaged = data.draw(
        st.sampled_from([text[:place], text[:place] + text[place + 1 :], text[:place] + "*" + text[place + 1 :]])
    )
    with pytest.raises(UserError, match="copy the whole line again"):
        parse_token(damaged)


@pytest.mark.parametrize("text", ["", "hello", "medley2.abc", "medley1." + "A" * 9000])
def test_what_is_not_a_token_is_one_sentence(text: str) -> None:
    with pytest.raises(UserError, match="not a join token"):
        parse_token(text)


@pytest.mark.parametrize(
    "wrong", [{"lifetime_s": 0}, {"uses": 0}, {"uses": 10**9}, {"role": "coordinator"}, {"addresses": []}]
)
def test_a_token_that_cannot_be_is_a_persons_mistake(authority: Authority, wrong: dict[str, object]) -> None:
    options: dict[str, object] = {"addresses": ["a:1"], "now_ns": NOW_NS, **wrong}
    with pytest.raises(UserError):
        create_token(authority.certificate_pem, **options)  # type: ignore[arg-type]


def test_a_token_is_used_once_but_a_lost_reply_burns_nothing(authority: Authority) -> None:
    token, stored = create_token(authority.certificate_pem, ["a:1"], NOW_NS)
    first = redeem(stored, token.secret, "key-1", NOW_NS)
    assert isinstance(first, Granted) and (first.role, first.again) == ("node", False)
    assert first.stored.redeemed == ("key-1",)
    assert redeem(first.stored, token.secret, "key-1", NOW_NS) == replace(first, again=True)
    other = redeem(first.stored, token.secret, "key-2", NOW_NS)
    assert isinstance(other, Refused) and "already used" in other.reason


def test_a_token_ends_and_is_not_guessed(authority: Authority) -> None:
    token, stored = create_token(authority.certificate_pem, ["a:1"], NOW_NS, lifetime_s=60)
    end_ns = NOW_NS + 60 * NS_PER_S
    granted = redeem(stored, token.secret, "key-1", end_ns - 1)
    assert isinstance(granted, Granted)
    unknown = redeem(None, token.secret, "key-1", NOW_NS)
    assert isinstance(unknown, Refused)
    assert redeem(None, "", "key-1", NOW_NS) == unknown
    assert redeem(stored, token.secret + "x", "key-1", NOW_NS) == unknown
    late = redeem(stored, token.secret, "key-1", end_ns)
    assert isinstance(late, Refused) and "expired" in late.reason
    assert isinstance(redeem(granted.stored, token.secret, "key-1", end_ns), Granted)
    assert isinstance(redeem(granted.stored, token.secret, "key-1", end_ns + 600 * NS_PER_S), Refused)
    revoked = redeem(replace(granted.stored, revoked=True), token.secret, "key-1", NOW_NS)
    assert isinstance(revoked, Refused) and "revoked" in revoked.reason


def test_a_token_for_several_machines_counts_them(authority: Authority) -> None:
    token, stored = create_token(authority.certificate_pem, ["a:1"], NOW_NS, uses=2, role="operator")
    for key in ("key-1", "key-2", "key-1"):
        decision = redeem(stored, token.secret, key, NOW_NS)
        assert isinstance(decision, Granted) and decision.role == "operator"
        stored = decision.stored
    assert isinstance(redeem(stored, token.secret, "key-3", NOW_NS), Refused)


def test_a_certificate_that_is_not_ours_names_nobody(authority: Authority) -> None:
    for bad in (authority.certificate_pem, b"garbage", b"\x30\x82", bytes(20_000)):
        with pytest.raises(PeerError):
            peer_identity(bad)
    pem = authority.enrol("w1", "node", NOW_NS).cert_pem
    der = x509.load_pem_x509_certificate(pem).public_bytes(serialization.Encoding.DER)
    assert peer_identity(der) == peer_identity(pem.decode()) == Peer("w1", "node")

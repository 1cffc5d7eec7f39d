"""A small authority for the tests of the control plane: P-256, one URI name a certificate."""

from __future__ import annotations

import datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from medley.transports.control.contract import SERVER_NAME, Pem

START = datetime.datetime(2020, 1, 1)
END = datetime.datetime(2120, 1, 1)


class Authority:
    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "medley test authority")])
        ca = x509.BasicConstraints(ca=True, path_length=0)
        cert = self._builder(self._name, self._key.public_key()).add_extension(ca, critical=True)
        self.pem = _pem(cert.sign(self._key, hashes.SHA256()))

    def issue(self, role: str, name: str) -> Pem:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(f"medley://{role}/{name}")]
        if role == "coordinator":
            names.append(x509.DNSName(SERVER_NAME))
        cert = self._builder(subject, key.public_key()).add_extension(
            x509.SubjectAlternativeName(names), critical=False
        )
        return Pem(_pem(cert.sign(self._key, hashes.SHA256())), _key_pem(key), self.pem)

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(self._name).public_key(key)
        return builder.serial_number(x509.random_serial_number()).not_valid_before(START).not_valid_after(END)


def _pem(cert: x509.Certificate) -> bytes:
    return cert.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )

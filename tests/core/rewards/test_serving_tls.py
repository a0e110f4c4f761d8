"""``flowfactory serve`` with a certificate."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import time
from pathlib import Path

import httpx2
import pytest
from reward_server import Served, serve_reward

from flowfactory import UserError
from flowfactory.rewards.serving.certificates import load_certificate

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates")
SHORT_HANDSHAKE = "import asyncio.constants\nasyncio.constants.SSL_HANDSHAKE_TIMEOUT = 1.0"


def openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


def make_certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1, signed by itself, and its key."""
    certificate, key = folder / f"{name}.crt", folder / f"{name}.key"
    subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2", "-nodes"]
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    openssl("req", "-x509", *kind, *subject, "-keyout", key, "-out", certificate)
    return certificate, key


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_certificate(tmp_path_factory.mktemp("tls"), "mine")


def test_a_service_with_a_certificate_speaks_tls_alone(pair: tuple[Path, Path]) -> None:
    certificate, key = pair
    options = ("--certfile", str(certificate), "--keyfile", str(key))
    with serve_reward(*options, before=SHORT_HANDSHAKE) as one:
        assert one.url.startswith("https://127.0.0.1:")
        trusting = ssl.create_default_context(cafile=certificate)
        assert httpx2.get(f"{one.url}/health", verify=trusting).json()["reward"] == "odd"
        with pytest.raises(httpx2.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx2.get(f"{one.url}/health")
        with pytest.raises(httpx2.TransportError):
            httpx2.get(one.url.replace("https", "http"))
        assert seconds_until_closed(one) < 10
        assert httpx2.get(f"{one.url}/health", verify=trusting).status_code == 200


def seconds_until_closed(server: Served) -> float:
    """How long a connection lasts on which no handshake begins."""
    host, port = server.url.removeprefix("https://").split(":")
    begun = time.monotonic()
    with socket.create_connection((host, int(port)), 30) as connection:
        assert connection.recv(1) == b""
    return time.monotonic() - begun


def test_certificates_that_cannot_be_used_are_one_line(pair: tuple[Path, Path], tmp_path: Path) -> None:
    certificate, key = pair
    _, other = make_certificate(tmp_path, "other")
    encrypted, text, gone = tmp_path / "encrypted.key", tmp_path / "text", tmp_path / "gone"
    openssl("pkey", "-in", key, "-aes256", "-passout", "pass:x", "-out", encrypted)
    text.write_text("no certificate")
    whole = tmp_path / "whole.pem"
    whole.write_text(certificate.read_text() + key.read_text())
    assert load_certificate(None, None) is None
    assert load_certificate(whole, None) is not None
    pem = "expected a certificate and its key in PEM, which begin with -----BEGIN"
    cases: list[tuple[Path | None, Path | None, str]] = [
        (None, key, "--keyfile: belongs to a certificate; name it with --certfile"),
        (gone, key, f"--certfile: no file {gone}"),
        (certificate, gone, f"--keyfile: no file {gone}"),
        (certificate, other, f"--keyfile {other}: its key does not belong to the certificate in {certificate}"),
        (
            certificate,
            encrypted,
            f"--keyfile {encrypted}: its key is encrypted; write it without a passphrase, readable to you alone",
        ),
        (text, key, f"--certfile {text} --keyfile {key}: {pem}"),
        (
            certificate,
            None,
            f"--certfile {certificate}: {pem}; name a key that lies in a file of its own with --keyfile",
        ),
    ]
    for first, second, said in cases:
        with pytest.raises(UserError) as caught:
            load_certificate(first, second)
        assert str(caught.value) == said

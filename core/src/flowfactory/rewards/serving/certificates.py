"""The certificate and the key of a service that speaks TLS."""

from __future__ import annotations

import ssl
from pathlib import Path

from flowfactory.config.paths import file_error
from flowfactory.errors import UserError


class _PassphraseWanted(Exception):
    """The key is encrypted."""


def load_certificate(certfile: Path | None, keyfile: Path | None) -> ssl.SSLContext | None:
    """TLS with the certificate, and its chain, in ``certfile`` and the key in ``keyfile``, or in ``certfile`` too.

    None: neither is given. UserError: they cannot be used.
    """
    if certfile is None:
        if keyfile is not None:
            raise UserError("--keyfile: belongs to a certificate; name it with --certfile")
        return None
    for option, path in (("--certfile", certfile), ("--keyfile", keyfile)):
        if path is not None and (reason := file_error(path)):
            raise UserError(f"{option}: {reason}")
    key = f"--keyfile {keyfile}" if keyfile is not None else f"--certfile {certfile}"
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certfile, keyfile, _refuse_passphrase)
    except _PassphraseWanted:
        raise UserError(f"{key}: its key is encrypted; write it without a passphrase, readable to you alone") from None
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise UserError(f"{key}: its key does not belong to the certificate in {certfile}") from error
        what = f"--certfile {certfile}" if keyfile is None else f"--certfile {certfile} --keyfile {keyfile}"
        hint = "; name a key that lies in a file of its own with --keyfile" if keyfile is None else ""
        raise UserError(f"{what}: expected a certificate and its key in PEM, which begin with -----BEGIN{hint}") from error
    except OSError as error:
        raise UserError(f"{key}: cannot be read: {error.strerror}") from error
    return context


def _refuse_passphrase() -> str:
    raise _PassphraseWanted

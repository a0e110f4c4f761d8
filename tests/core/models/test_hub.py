"""A hub id that gives no files says why, and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from huggingface_hub import constants

from flowfactory import UserError
from flowfactory.models import Pretrained

BEGINNING = "model.path: owner/name cannot be read: "


class Refusing(BaseHTTPRequestHandler):
    """A hub that answers everything with ``answer``, as the real one says it."""

    answer: tuple[int, str] = (404, "RepoNotFound")

    def do_HEAD(self) -> None:
        code, reason = self.answer
        self.send_response(code)
        self.send_header("X-Error-Code", reason)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    yield
    server.shutdown()
    server.server_close()


def refusal() -> str:
    with pytest.warns(UserWarning, match="local_dir_use_symlinks"), pytest.raises(UserError) as refused:
        assert Pretrained("owner/name", ("StableDiffusion3Pipeline",)).parts
    return str(refused.value)


@pytest.mark.parametrize(
    ("code", "reason", "told"),
    [
        (
            403,
            "GatedRepo",
            "the hub gives it to those alone who accepted its licence; do so on its page, then log in: hf auth login",
        ),
        (401, "RepoNotFound", "the hub has no such id that you may read; correct it, give a folder, or log in: hf auth login"),
        (404, "RepoNotFound", "the hub has no such id that you may read; correct it, give a folder, or log in: hf auth login"),
        (404, "EntryNotFound", "owner/name does not appear to have a file named model_index.json"),
    ],
)
def test_a_hub_that_gives_nothing_is_one_line(
    hub: None, monkeypatch: pytest.MonkeyPatch, code: int, reason: str, told: str
) -> None:
    monkeypatch.setattr(Refusing, "answer", (code, reason))
    assert refusal() == BEGINNING + told


def test_without_a_network_a_folder_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    told = "it is not on this machine, and the hub is out of reach; give a folder, or download it first: hf download"
    assert refusal() == BEGINNING + told

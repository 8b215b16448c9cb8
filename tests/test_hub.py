"""A model on a hub: fetched by the hub's own client from a server that answers as the hub does."""

import hashlib
import http.server
import json
import threading

import pytest
from huggingface_hub import constants

from jaxdiff.commands import main
from jaxdiff.errors import UserError
from jaxdiff.storage import fetched

REVISION = "0123456789abcdef0123456789abcdef01234567"
FILES = {"config.json": b"{}", "model.safetensors": b"weights", "model.fp16.safetensors": b"half", "samples.png": b"?"}


class Hub(http.server.BaseHTTPRequestHandler):
    asked: list[str] = []  # noqa: RUF012

    def do_GET(self):
        self.asked.append(self.path)
        kind, _, rest = self.path.removeprefix("/").partition("me/cats/")
        name = rest.removeprefix(f"resolve/{REVISION}/")
        if kind == "api/models/" and rest in ("revision/main", "revision/v2"):
            self.answer(json.dumps({"id": "me/cats", "sha": REVISION}).encode())
        elif kind == "api/models/" and rest.startswith(f"tree/{REVISION}"):
            tree = [{"type": "file", "path": name, "size": len(FILES[name]), "oid": "0"} for name in FILES]
            self.answer(json.dumps(tree).encode())
        elif kind == "" and name in FILES:
            self.answer(FILES[name])
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    do_HEAD = do_GET

    def answer(self, content):
        self.send_response(200)
        self.send_header("X-Repo-Commit", REVISION)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    for name, value in (("ENDPOINT", address), ("HF_HUB_CACHE", str(tmp_path)), ("HF_HUB_OFFLINE", False)):
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    yield server
    server.shutdown()


def test_what_is_read_of_a_model_is_fetched_once(hub):
    folder = fetched("hf://me/cats")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        name: FILES[name] for name in ("config.json", "model.safetensors")
    }
    assert fetched("hf://me/cats@v2") == folder
    got = [path for path in Hub.asked if path.endswith("model.safetensors")]
    assert len(got) <= 2 and not any("fp16" in path for path in Hub.asked)  # a HEAD, a GET


def test_what_cannot_be_fetched_is_one_line(hub, capsys):
    assert main(["sample", "hf://me/dogs"]) == 2
    error = capsys.readouterr().err
    assert "hf://me/dogs cannot be fetched" in error and error.count("\n") == 1
    with pytest.raises(UserError, match="no address of a model; write hf://OWNER/NAME"):
        fetched("hf://me")
    assert main(["train", "digits", "--workdir", "hf://me/cats"]) == 2
    assert "is no place for files" in capsys.readouterr().err

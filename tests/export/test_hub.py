"""Uploads of exports, to a small server that answers as a model hub does."""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from test_cli_help import call
from trifed.common.errors import RunError
from trifed.export.hub import push_to_hub


class Hub:
    """A hub: its repositories, whether each is private, and the files in them."""

    def __init__(self) -> None:
        self.private: dict[str, bool] = {}
        self.files: dict[str, dict[str, bytes]] = {}
        self.tokens: set[str] = set()
        self.address = ""

    def answer(self, path: str, body: bytes) -> tuple[int, Any]:
        """Answer a request as far as an upload of a folder needs it."""
        parts = path.partition("?")[0].strip("/").split("/")
        name = "/".join(parts[2:4])
        if parts == ["api", "repos", "create"]:
            return self.create(json.loads(body))
        if parts == ["api", "validate-yaml"]:
            return 200, {"errors": [], "warnings": []}
        if parts[4:5] == ["preupload"]:
            names = [file["path"] for file in json.loads(body)["files"]]
            return 200, {"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]}
        if parts[4:5] == ["commit"]:
            return self.commit(name, [json.loads(line) for line in body.splitlines()])
        if parts[:2] == ["api", "models"] and name in self.private:
            return 200, {"id": name, "private": self.private[name], "sha": "0" * 40, "siblings": [], "tags": []}
        return 404, {"error": f"no {path}"}

    def create(self, asked: dict[str, Any]) -> tuple[int, Any]:
        """Make a repository, unless it exists."""
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.private:
            return 409, {"error": "exists", "url": f"{self.address}/{name}"}
        self.private[name] = asked.get("visibility") == "private"
        return 200, {"url": f"{self.address}/{name}"}

    def commit(self, name: str, lines: list[dict[str, Any]]) -> tuple[int, Any]:
        """Keep the files of a commit."""
        for value in (line["value"] for line in lines if line["key"] == "file"):
            self.files.setdefault(name, {})[value["path"]] = base64.b64decode(value["content"])
        return 200, {"commitUrl": f"{self.address}/{name}/commit/{'0' * 40}", "commitOid": "0" * 40}


@pytest.fixture
def hub(monkeypatch):
    """A hub on this machine that is the one of HF_ENDPOINT."""
    known = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            known.tokens.add(self.headers.get("Authorization", ""))
            code, value = known.answer(self.path, self.rfile.read(int(self.headers.get("Content-Length") or 0)))
            text = json.dumps(value).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST  # noqa: N815 - the name that the server calls

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    known.address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("HF_ENDPOINT", known.address)
    yield known
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def logged_in(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "berlin"
    path.mkdir()
    (path / "README.md").write_text("---\ntags: [trifed]\n---\n# berlin\n")
    (path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "someone/base"}))
    (path / "adapter_model.safetensors").write_bytes(bytes(range(100)))
    return path


def test_a_folder_and_its_card_are_uploaded(hub, folder):
    address = push_to_hub(folder, "team/berlin", private=True)
    assert address.endswith("team/berlin")
    assert hub.private == {"team/berlin": True} and hub.tokens == {"Bearer hf_secret"}
    assert hub.files["team/berlin"] == {path.name: path.read_bytes() for path in folder.iterdir()}
    push_to_hub(folder, "team/berlin", private=True)  # once more, into the same repository


def test_a_public_repository_does_not_become_private(hub, folder):
    push_to_hub(folder, "team/open")
    assert hub.private == {"team/open": False}
    hub.files.clear()
    with pytest.raises(RunError, match="public"):
        push_to_hub(folder, "team/open", private=True)
    assert not hub.files


def test_a_hub_that_cannot_be_reached_is_one_message(folder, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(RunError, match=r"team/berlin: not uploaded .*hf upload team/berlin"):
        push_to_hub(folder, "team/berlin")


def test_names_logins_and_bases_are_checked_first(folder, monkeypatch):
    for name in ("berlin", "a/b/c", "/x", "a b/c"):
        with pytest.raises(RunError, match="expected OWNER/NAME"):
            push_to_hub(folder, name)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(folder)}))
    with pytest.raises(RunError, match=r"--base .*--form merged"):
        push_to_hub(folder, "team/berlin")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(RunError, match="hf auth login"):
        push_to_hub(folder, "team/berlin")


def test_from_the_command_line(hub, own_copy, tmp_path, capsys, monkeypatch):
    run = own_copy("ce-lora")
    export = ["export", run, "--client", "amber", "--form", "merged", "--to", tmp_path / "new"]
    said = call(capsys, monkeypatch, *export, "--private")
    assert said.code == 2 and "--push-to-hub" in said.err and not (tmp_path / "new").exists()
    said = call(capsys, monkeypatch, *export, "--push-to-hub", "team/amber", "--private")
    assert said.code == 0 and "team/amber" in said.out
    assert {"README.md", "config.json", "model.safetensors"} <= set(hub.files["team/amber"])
    texts = [content for name, content in hub.files["team/amber"].items() if name.endswith((".json", ".md"))]
    assert not any(str(Path(tmp_path).parent).encode() in text for text in texts)  # no path of this machine

"""Keys on a real server: made and revoked by the command while it runs, shown by OpenAI's client, seen in no log."""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import httpx2
import openai
import psutil
import pytest

from tests.house.readme import block
from tests.server import ROOT, Serve, Server, command, environment

STUB = ("--device", "stub:1")


@pytest.fixture
def token(runtime: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """Runs `replicast token` to its good end on the data folder of these tests; the lines it printed."""

    def run(*args: str) -> list[str]:
        ended = subprocess.run(
            command("token", *args, "--data-dir", str(tmp_path / "data")),
            cwd=ROOT,
            env=environment(runtime),
            capture_output=True,
            text=True,
            timeout=45.0,
        )
        assert ended.returncode == 0, ended.stderr
        assert ended.stderr == ""
        return ended.stdout.splitlines()

    return run


Token = Callable[..., list[str]]


def client(server: Server, key: str) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"{server.address}/v1", api_key=key, max_retries=0, http_client=httpx2.Client(trust_env=False)
    )


def draw(server: Server, key: str) -> openai.types.ImagesResponse:
    with client(server, key) as asking:
        return asking.images.generate(model="stub", prompt="a hen", size="256x256")


def test_keys_are_made_used_and_revoked_while_the_server_runs(serve: Serve, token: Token, tmp_path: Path) -> None:
    server = serve(*STUB, "--model", "stub", data_dir=tmp_path / "data", log_level="debug")
    # Nobody has made a key: whatever is shown, everybody on this machine is let in.
    assert draw(server, "none").data
    *told, secret = token("create", "--role", "inference", "--name", "laptop", "--images-per-minute", "100")
    [key_id] = re.findall(r"key_[0-9a-f]+", " ".join(told))
    assert draw(server, secret).data
    with pytest.raises(openai.AuthenticationError) as wrong:
        draw(server, "none")
    assert wrong.value.code == "invalid_api_key"
    assert server.http.get("/readyz").status_code == 200
    assert server.http.get("/metrics").status_code == 401
    figures = token("create", "--role", "metrics")[-1]
    with pytest.raises(openai.PermissionDeniedError) as denied:
        draw(server, figures)
    assert denied.value.code == "insufficient_role"
    assert server.http.get("/metrics", headers={"authorization": f"Bearer {figures}"}).status_code == 200

    listed = token("list")
    assert [line.split()[0] for line in listed] == ["ID", key_id, listed[2].split()[0]]
    assert listed[1].split()[1] == "inference"
    assert listed[1].endswith("100         laptop")
    assert not [line for line in listed if secret in line or figures in line]

    assert token("revoke", key_id) == [f"{key_id} is revoked."]
    with pytest.raises(openai.AuthenticationError) as revoked:
        draw(server, secret)
    assert revoked.value.message == wrong.value.message
    said = token("revoke", listed[2].split()[0])
    assert "It was the last" in said[1]
    assert server.http.get("/v1/models").status_code == 401
    assert server.stop() == 0
    for text in (server.log, server.output, *(path.read_text() for path in server.data_dir.glob("keys*"))):
        assert secret not in text
        assert figures not in text
    # It is not opened by being started again, nor taken to be reachable for anybody.
    again = serve(*STUB, "--model", "stub", data_dir=tmp_path / "data")
    assert again.http.get("/v1/models").status_code == 401
    assert "no_key_is_left" in again.log


def test_a_key_is_seen_by_no_process_and_no_log(serve: Serve, token: Token, tmp_path: Path) -> None:
    secret = token("create", "--role", "inference")[-1]
    server = serve(*STUB, data_dir=tmp_path / "data", log_level="debug", env={"REPLICAST_API_KEY": secret})
    for path in (f"/v1/models?api_key={secret}", f"/{secret}", f"/v1/models/{secret}"):
        for headers in ({}, {"authorization": f"Bearer {secret}"}, {"x-request-id": secret}):
            answer = server.http.get(path, headers=headers)
            assert answer.status_code >= 400
            if path.startswith("/v1/models?"):
                assert secret not in answer.text
    worker = psutil.Process(server.workers()["stub0"])
    assert secret not in worker.environ().values()
    assert secret not in server.log
    assert secret not in server.output


def refused(runtime: Path, *args: str) -> str:
    """What `replicast serve` says that does not start with these."""
    ended = subprocess.run(
        command("serve", "--port", "0", *STUB, *args),
        cwd=ROOT,
        env=environment(runtime),
        capture_output=True,
        text=True,
        timeout=45.0,
    )
    assert ended.returncode == 2
    assert ended.stdout == ""
    [line] = ended.stderr.splitlines()
    return line


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "gpu.example"])
def test_it_does_not_listen_for_others_without_a_key(runtime: Path, tmp_path: Path, host: str) -> None:
    line = refused(runtime, "--host", host, "--data-dir", str(tmp_path / "data"))
    assert line.startswith(f"replicast: --host {host} can be reached by others and there is no key")
    assert "replicast token create" in line
    assert "--allow-anonymous" in line


def test_keys_that_cannot_be_read_keep_it_from_starting(runtime: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "keys.json").write_text("{")
    for host in ("127.0.0.1", "0.0.0.0"):
        assert "does not hold keys" in refused(runtime, "--host", host, "--data-dir", str(tmp_path / "data"))


def test_with_a_key_it_listens_for_others_who_have_it(serve: Serve, token: Token, tmp_path: Path) -> None:
    secret = token("create", "--role", "inference")[-1]
    server = serve(*STUB, "--host", "0.0.0.0", data_dir=tmp_path / "data")
    assert server.http.get("/v1/models").status_code == 401
    assert server.http.get("/v1/models", headers={"authorization": f"Bearer {secret}"}).status_code == 200
    assert '-H "Authorization: Bearer $REPLICAST_API_KEY"' in server.output
    misled = server.http.get("/livez", headers={"host": "evil.test"})
    assert (misled.status_code, misled.json()["error"]["code"]) == (421, "misdirected_request")


def test_with_allow_anonymous_it_listens_for_everybody(serve: Serve) -> None:
    server = serve(*STUB, "--host", "0.0.0.0", "--allow-anonymous", "--public-url", "https://gpu.example")
    assert server.http.get("/v1/models").status_code == 200
    assert server.http.get("/v1/models", headers={"host": "gpu.example"}).status_code == 200
    assert server.http.get("/v1/models", headers={"host": "other.example"}).status_code == 421


def test_generate_shows_its_key(serve: Serve, token: Token, runtime: Path, tmp_path: Path) -> None:
    secret = token("create", "--role", "inference")[-1]
    server = serve(*STUB, data_dir=tmp_path / "data")
    out = tmp_path / "out.png"

    def generate(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command("generate", "a hen", "-o", str(out), *args),
            cwd=ROOT,
            env=environment(runtime, port=server.address.rpartition(":")[2]) | env,
            capture_output=True,
            text=True,
            timeout=45.0,
        )

    # With and without an address: it finds the server at its usual port, and does not start another.
    for args in ((), ("--url", server.address)):
        ended = generate(*args)
        assert (ended.returncode, ended.stdout) == (2, "")
        assert ended.stderr == f"replicast: {server.address} needs a key: set REPLICAST_API_KEY\n"
        ended = generate(*args, REPLICAST_API_KEY="rc_other")
        assert ended.stderr == f"replicast: {server.address} does not take the key that REPLICAST_API_KEY holds\n"
        ended = generate(*args, REPLICAST_API_KEY="kéy")
        assert ended.stderr == "replicast: REPLICAST_API_KEY does not hold a key\n"
        ended = generate(*args, REPLICAST_API_KEY=f" {secret}\n")
        assert ended.returncode == 0, ended.stderr
        out.unlink()


LIVE, MODELS, POST = b"GET /livez HTTP/1.1", b"GET /v1/models HTTP/1.1", b"POST /v1/images/generations HTTP/1.1"
HERE, SHOWN = b"Host: 127.0.0.1", b"Authorization: Bearer %b"
# A request's head by its lines, with the key for %b; and what is said to it.
HEADS: dict[str, tuple[list[bytes], int]] = {
    "host twice": ([LIVE, HERE, b"Host: evil.test"], 421),
    "no host": ([LIVE], 421),
    "no host in HTTP/1.0": ([b"GET /livez HTTP/1.0"], 421),
    "host in HTTP/1.0": ([b"GET /livez HTTP/1.0", b"HOST:127.0.0.1"], 200),
    "host over two lines": ([LIVE, b"Host: evil.test", b" 127.0.0.1"], 400),
    "a space before the colon": ([LIVE, b"Host : 127.0.0.1"], 400),
    # There is one server here, whatever the target calls it; the Host header is what a browser cannot forge.
    "another host in the target": ([b"GET http://evil.test/livez HTTP/1.1", HERE], 200),
    "ours in the target only": ([b"GET http://127.0.0.1/livez HTTP/1.1", b"Host: evil.test"], 421),
    "the server itself": ([b"OPTIONS * HTTP/1.1", HERE], 404),
    "a tunnel": ([b"CONNECT evil.test:443 HTTP/1.1", HERE], 400),
    "a page in capitals": ([LIVE, HERE, b"ORIGIN: http://evil.test"], 403),
    "a key": ([MODELS, HERE, SHOWN], 200),
    "a key in capitals": ([MODELS, HERE, b"AUTHORIZATION: BEARER %b"], 200),
    "a key with spaces": ([MODELS, HERE, b"Authorization: \t Bearer   %b \t"], 200),
    "a key twice": ([MODELS, HERE, SHOWN, SHOWN], 401),
    "two keys in one": ([MODELS, HERE, b"Authorization: Bearer x, Bearer %b"], 401),
    "a key over two lines": ([MODELS, HERE, b"Authorization: Bearer", b" %b"], 400),
    "a key elsewhere": ([MODELS, HERE, b"X-API-Key: %b", b"Cookie: authorization=%b"], 401),
    "a long key": ([MODELS, HERE, b"Authorization: Bearer " + b"x" * 60_000], 401),
    "another method in a header": ([MODELS, HERE, b"X-HTTP-Method-Override: OPTIONS"], 401),
    "two lengths": ([POST, HERE, SHOWN, b"Content-Length: 2", b"Content-Length: 3"], 400),
    "two framings": ([POST, HERE, SHOWN, b"Content-Length: 2", b"Transfer-Encoding: chunked"], 400),
    "dots in a path": ([b"GET /livez/../v1/models HTTP/1.1", HERE], 404),
    "slashes before a path": ([b"GET //v1/models HTTP/1.1", HERE], 404),
    "an encoded path": ([b"GET /%76%31/models HTTP/1.1", HERE], 401),
    "an encoded slash": ([b"GET /v1%2Fmodels HTTP/1.1", HERE], 401),
}


def test_no_spelling_of_a_request_gets_around_the_gate(serve: Serve, token: Token, tmp_path: Path) -> None:
    secret = token("create", "--role", "inference")[-1].encode()
    server = serve(*STUB, data_dir=tmp_path / "data")
    host, port = server.address.removeprefix("http://").split(":")
    found = {}
    for name, (lines, _) in HEADS.items():
        said = b"\r\n".join([*lines, b"", b""]).replace(b"%b", secret)
        with closing(socket.create_connection((host, int(port)), 10.0)) as connection:
            connection.sendall(said)
            found[name] = int(connection.recv(65_536).split(b" ")[1])
    assert found == {name: status for name, (_, status) in HEADS.items()}


def test_the_keys_of_the_readme(serve: Serve, runtime: Path, tmp_path: Path) -> None:
    server = serve(*STUB, "--model", "shapes=stub")
    code = block("test_the_keys_of_the_readme").code.replace("http://127.0.0.1:8000", server.address)
    code = code.replace(".venv/bin/replicast", f"{shlex.quote(sys.executable)} -m gateway")
    ran = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", code],
        cwd=ROOT,
        env=environment(runtime, data_dir=server.data_dir) | {"no_proxy": "*", "PYTHONPATH": os.fspath(ROOT)},
        capture_output=True,
        text=True,
        timeout=60.0,
    )
    assert ran.returncode == 0, ran.stderr
    assert '"id":"shapes"' in ran.stdout
    assert server.http.get("/v1/models").status_code == 401

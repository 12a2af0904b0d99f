import contextlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from spatial_clap_jax.data.language_model import Cached, Endpoint
from spatial_clap_jax.errors import InputError


class Server:
    """Answers each request with the next of `replies` (status, body); the last one stays."""

    def __init__(self, replies):
        self.replies, self.asked, self.headers, self.paths = list(replies), [], [], []
        self.lock = threading.Lock()

    def next(self, handler, body):
        with self.lock:
            self.asked.append(body)
            self.headers.append(dict(handler.headers))
            self.paths.append(handler.path)
            return self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]


@contextlib.contextmanager
def serving(*replies):
    """A server of this machine and its address, while the block runs."""
    state = Server(replies)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, reply, *headers = state.next(self, body)
            self.send_response(status)
            for header in headers:
                self.send_header(*header)
            self.end_headers()
            self.wfile.write(reply.encode())

        do_GET = do_POST

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield state, f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()


def said(text):
    return 200, json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]})


@pytest.fixture(autouse=True)
def own_machine(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def endpoint(url, **options):
    return Endpoint(url, "tiny-llm", **{"first_wait_s": 0.001, "timeout_s": 5.0} | options)


def test_a_prompt_is_answered(monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret")
    with serving(said("A dog barks.")) as (server, url):
        assert endpoint(f"{url}/", key_variable="MY_KEY").complete("rewrite") == "A dog barks."
        assert endpoint(url).complete("again") == "A dog barks."
    assert server.paths[0] == "/v1/chat/completions"
    assert server.asked[0]["model"] == "tiny-llm"
    assert server.asked[0]["messages"] == [{"role": "user", "content": "rewrite"}]
    assert server.headers[0]["Authorization"] == "Bearer secret"
    assert "Authorization" not in server.headers[1]


@pytest.mark.parametrize(
    "failure",
    [
        (500, "busy"),
        (429, "slow down", ("Retry-After", "0")),
        (200, "<html>garbage"),
        (200, '{"choices": []}'),
        (200, '{"choices": [{"message": {"content": null}}]}'),
        (200, '{"choices": [{"message": {"content": "half of \\ud83d"}}]}'),
        (200, "[" * 100_000),
        (200, " " * (2**22 + 1)),
    ],
)
def test_what_passes_is_tried_again(failure):
    with serving(failure, failure, said("fine")) as (server, url):
        assert endpoint(url).complete("x") == "fine"
    assert len(server.asked) == 3


def test_waits_grow(monkeypatch):
    waits = []
    monkeypatch.setattr("time.sleep", waits.append)
    with (
        serving((503, ""), (503, "", ("Retry-After", "7")), (503, "")) as (_, url),
        pytest.raises(InputError, match="503"),
    ):
        endpoint(url, first_wait_s=1.0, attempts=5).complete("x")
    assert waits == [1.0, 7.0, 14.0, 28.0]


def test_a_server_that_stays_down_is_named():
    with serving((500, "out of memory")) as (server, url):
        with pytest.raises(InputError, match=r"no answer in 3 attempts \(status 500: out of mem"):
            endpoint(url, attempts=3).complete("x")
        assert len(server.asked) == 3
    with pytest.raises(InputError, match=r"no answer in 2 attempts .* start again"):
        endpoint(url, attempts=2).complete("x")


def test_a_refusal_is_not_repeated():
    with serving((401, "no such key")) as (server, url):
        with pytest.raises(
            InputError, match=r"refuses \(status 401: no such key\); check .* OPENAI"
        ):
            endpoint(url).complete("x")
        assert len(server.asked) == 1


def test_the_key_follows_no_redirect(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with (
        serving(said("stolen")) as (other, elsewhere),
        serving((302, "", ("Location", f"{elsewhere}/x"))) as (_, url),
    ):
        with pytest.raises(InputError, match=r"refuses \(status 302"):
            endpoint(url).complete("x")
        assert other.asked == []


def test_a_key_that_no_header_may_hold_is_named(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret\n")
    with serving(said("fine")) as (server, url):
        with pytest.raises(InputError, match=r"^OPENAI_API_KEY: holds characters"):
            endpoint(url).complete("x")
        assert server.asked == []


def test_an_answer_that_does_not_end_is_given_up():
    with serving((200, "x", ("Content-Length", "99"))) as (_, url):
        began = time.monotonic()
        with pytest.raises(InputError, match=r"no answer in 1 attempts"):
            endpoint(url, attempts=1, timeout_s=0.2).complete("x")
    assert time.monotonic() - began < 60


def test_nothing_is_asked_twice(tmp_path):
    with serving(said("one"), said("two"), said("three")) as (server, url):
        model = Cached(endpoint(url), tmp_path / "cache")
        assert [model.complete(p) for p in ("a", "b", "a", "b")] == ["one", "two", "one", "two"]
        assert len(server.asked) == 2
    # The server is gone, the answers are not.
    assert Cached(endpoint(url), tmp_path / "cache").complete("a") == "one"
    with serving(said("another model's")) as (_, url):
        other = Cached(Endpoint(url, "other", first_wait_s=0.001), tmp_path / "cache")
        assert other.complete("a") == "another model's"


def test_a_damaged_answer_is_asked_anew(tmp_path):
    with serving(said("one"), said("two")) as (_, url):
        model = Cached(endpoint(url), tmp_path)
        model.complete("a")
        (path,) = tmp_path.rglob("*.json")
        path.write_text(path.read_text()[:20])
        assert model.complete("a") == "two"
        assert model.complete("a") == "two"
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == [path.name]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "file:///etc/passwd"}, "url 'file:///etc/passwd': must start with http"),
        ({"url": "http://"}, "url 'http://': must .* name a host"),
        ({"url": "http://[::1/v1"}, r"url 'http://\[::1/v1': must .* name a host"),
        ({"url": "http://localhost:port"}, "url 'http://localhost:port': must .* name a host"),
        ({"name": ""}, "model '': must have a name"),
        ({"name": "a\udcff"}, r"model 'a\\udcff': must have a name"),
        ({"attempts": 0}, "attempts 0: must be at least 1"),
    ],
)
def test_unusable_endpoints_are_named(options, message):
    with pytest.raises(InputError, match=message):
        Endpoint(**{"url": "http://localhost/v1", "name": "tiny"} | options)

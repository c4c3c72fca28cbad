"""A server under many clients at once: each answer is the request's own, errors too."""

import concurrent.futures
import contextlib
import json
import random
import shutil
import socket
import threading
import types

import httpx
import jax
import numpy as np
import pytest

import adalink_jax as al
from adalink_jax.tools.serving.batching import Batcher, Fair, Job
from adalink_jax.tools.serving.metrics import Metrics
from adalink_jax.tools.serving.requests import Request
from tests.tiers import mostly_slow
from tests.tools.serving.served import (
    EVERY,
    LABELS,
    METHODS_OF,
    SERVER_LIMITS,
    TEXTS,
    alone,
    greedy,
    running,
    served,
    until,
    write,
)


@pytest.fixture(scope="module")
def server(mini_base, folder):
    """A client, and the service behind it."""
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setenv("ADALINK_ADMIN_TOKEN", "secret")
    labels_of = {"mine": ("positive", "negative")}
    service = served(mini_base, folder[0], labels_of=labels_of, limits=SERVER_LIMITS, resident=12)
    with running(service) as client:
        yield client, service
    monkeypatch.undo()


ADMIN = {"Authorization": "Bearer secret"}


NAMES = {
    "some": [None, "adalink_9", "adalink_many:r1"],
    "every": [None, *EVERY[:2], "adalink_many:r0", "adalink_many:r2", "lora", "prompt_tuning"],
}


@pytest.mark.parametrize("which", mostly_slow(["some", "every"], ["some"]))
def test_many_at_once_answer_as_each_alone(base, folder, server, which):
    """Scores, texts, draws and completions of all adapters, from twelve threads."""
    client, service = server
    trees, names = folder[1], NAMES[which]
    rng = random.Random(0)
    cases = [(names[i % len(names)], TEXTS[i % len(TEXTS)]) for i in range(24)]
    scores = {case: alone(base, trees, case[1], case[0]) for case in set(cases)}
    texts = {case: greedy(base, trees, case[1], case[0]) for case in set(cases)}

    def drawn(name, text, seed):
        body = {"text": text, "adapter": name, "temperature": 1.5, "top_p": 0.9, "seed": seed}
        answer = client.post("/v1/generate", json=body)
        return answer.json()["text"]

    draws = {case: drawn(*case, seed=7) for case in sorted(set(cases), key=str)}

    def ask(number):
        name, text = case = cases[number % len(cases)]
        about = {"text": text, "adapter": name, "id": number}
        kind = number % 4
        if kind == 0:
            found = client.post("/v1/score", json={**about, "labels": LABELS}).json()
            np.testing.assert_allclose(
                list(found["scores"].values()), scores[case], atol=1e-4, rtol=1e-5
            )
        elif kind == 1:
            found = client.post("/v1/generate", json=about).json()
            assert found["text"] == texts[case], (case, found)
        elif kind == 2:
            assert drawn(name, text, 7) == draws[case]
            return
        else:
            body = {"model": name or "base", "prompt": text, "temperature": 0}
            found = client.post("/v1/completions", json=body).json()
            assert found["choices"][0]["text"] == texts[case]
            return
        assert found["id"] == number

    numbers = list(range(96))
    rng.shuffle(numbers)
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        list(pool.map(ask, numbers))
    assert any(drawn(*cases[0], seed=seed) != draws[cases[0]] for seed in range(5))
    before = service.engine.programs.compiled
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        list(pool.map(ask, numbers))
    assert service.engine.programs.compiled - before <= 2, "rows that no call had before"


def test_an_adapters_own_labels(server):
    client, _ = server
    found = client.post("/v1/score", json={"text": TEXTS[0], "adapter": "own"}).json()
    assert list(found["scores"]) == ["positive", "negative"]
    assert client.post("/v1/score", json={"text": TEXTS[0]}).status_code == 422


def test_a_stream_is_the_text_in_pieces(server):
    client, _ = server
    body = {"text": TEXTS[2], "adapter": "adalink_9", "id": "x"}
    whole = client.post("/v1/generate", json=body).json()
    with client.stream("POST", "/v1/generate", json={**body, "stream": True}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = [json.loads(line[6:]) for line in answer.iter_lines() if line]
    assert "".join(one.get("text", "") for one in events) == whole["text"]
    assert events[-1] == {
        "finish_reason": whole["finish_reason"], "tokens": whole["tokens"], "id": "x"
    }  # fmt: skip
    body = {"model": "adalink_9", "prompt": TEXTS[2], "temperature": 0, "stream": True}
    with client.stream("POST", "/v1/completions", json=body) as answer:
        lines = [line[6:] for line in answer.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    chunks = [json.loads(line)["choices"][0] for line in lines[:-1]]
    assert "".join(one["text"] for one in chunks) == whole["text"]
    assert chunks[-1]["finish_reason"] == whole["finish_reason"]


def test_beams_and_limits_of_tokens(base, server):
    client, _ = server
    body = {"text": TEXTS[0], "max_tokens": 2}
    short = client.post("/v1/generate", json=body).json()
    assert short["tokens"] <= 2
    beams = client.post("/v1/generate", json={"text": TEXTS[0], "beam_size": 3})
    assert beams.status_code == 200 and beams.json()["text"]
    assert client.post("/v1/generate", json={**body, "max_tokens": 9}).status_code == 422


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("score", b"garbage", 400, "JSON"),
        ("score", b"[1, 2]", 400, "valid dictionary"),
        ("score", b'{"text": 3}', 400, "text: Input should be a valid string"),
        ("score", b"{}", 400, "text: Field required"),
        ("score", b'{"text": "a", "txt": 1}', 400, "txt: Extra inputs are not permitted"),
        ("score", b'{"text": "half \\ud83d"}', 400, "text"),
        ("score", b'{"text": "a", "id": NaN}', 400, "id"),
        ("score", b'{"text": "a", "id": %s}' % (b"9" * 5000), 400, ""),
        ("score", b'{"text": "a", "id": %s}' % (b"[" * 90_000), 400, ""),
        ("score", b"\xff\xfe", 400, ""),
        ("score", b'{"text": " "}', 422, "the text is empty"),
        ("score", b'{"text": "a", "adapter": ""}', 400, "at least 1"),
        ("score", b'{"text": "a", "adapter": "adalink_4"}', 404, "did you mean 'adalink_"),
        ("score", b'{"text": "a", "adapter": "../own"}', 404, "no adapter"),
        ("score", b'{"text": "a", "adapter": ".."}', 404, "no adapter"),
        ("score", b'{"text": "a", "adapter": "a\\u0000b"}', 404, "no adapter"),
        ("score", b'{"text": "a", "adapter": "adalink_many"}', 422, "has several"),
        ("score", b'{"text": "a", "adapter": "adalink_many:r7"}', 422, "no route 'r7'"),
        ("score", b'{"text": "a", "labels": ["dog", "dog"]}', 422, "the same tokens"),
        ("score", b'{"text": "a", "labels": "dog"}', 400, "labels"),
        ("generate", b'{"text": "a", "temperature": -1}', 400, "temperature"),
        ("generate", b'{"text": "a", "top_p": 0}', 400, "top_p"),
        ("generate", b'{"text": "a", "max_tokens": 100000}', 422, "this server generates 8"),
        ("completions", b'{"model": "nobody", "prompt": "a"}', 404, "no adapter 'nobody'"),
        ("completions", b'{"model": "base", "prompt": "a", "n": 2}', 400, "n: "),
        ("nothing", b"{}", 404, "Not Found"),
        ("score", b'{"text": "%s"}' % (b"a" * 2**20), 413, "at most 1,048,576"),
    ],
)  # fmt: skip
def test_an_error_is_a_problem_document_with_the_requests_id(server, path, body, status, words):
    client, _ = server
    headers = {"content-type": "application/json", "x-request-id": "mine-7"}
    answer = client.post(f"/v1/{path}", content=body, headers=headers)
    found = answer.json()
    assert (answer.status_code, found["status"]) == (status, status), found
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-request-id"] == found["request_id"] == "mine-7"
    assert words in found["detail"], found
    assert found["error"]["message"] == found["detail"]


def test_a_body_that_does_not_end_or_come_is_not_waited_for(server, monkeypatch):
    client, _ = server

    def endless():
        for _ in range(40):
            yield b" " * 2**16

    with contextlib.suppress(httpx.TransportError):  # It may hang up while we still send.
        assert client.post("/v1/score", content=endless()).status_code == 413
    assert client.get("/healthz").json() == {"status": "ok"}


def test_adapters_that_change_vanish_or_are_damaged_concern_their_own_requests(
    base, folder, server
):
    client, _ = server
    place, trees = folder
    body = {"text": TEXTS[0], "adapter": "mutable", "labels": LABELS}
    good = {**body, "adapter": "adalink_2"}
    first = client.post("/v1/score", json=good).json()["scores"]
    write(place / "mutable", base, METHODS_OF["adalink_2"], trees["adalink_2"])
    assert client.post("/v1/score", json=body).json()["scores"] == pytest.approx(first, rel=1e-5)
    doubled = jax.tree.map(lambda x: 2 * x, trees["adalink_2"])
    write(place / "mutable", base, METHODS_OF["adalink_2"], doubled, changed=True)
    changed = client.post("/v1/score", json=body).json()["scores"]
    assert changed != pytest.approx(first, rel=1e-3)
    record = place / "mutable" / "adapter.json"
    record.write_text(record.read_text().replace('"rank": 2', '"rank": 3'))
    broken = client.post("/v1/score", json=body)
    assert broken.status_code == 422 and str(place) not in broken.text
    huge = jax.tree.map(lambda x: np.full_like(x, 1e30), trees["adalink_2"])
    write(place / "mutable", base, METHODS_OF["adalink_2"], huge)
    for path in ("score", "generate"):
        asked = {k: v for k, v in body.items() if path == "score" or k != "labels"}
        answer = client.post(f"/v1/{path}", json=asked)
        assert answer.status_code == 422 and "not finite" in answer.text
    shutil.rmtree(place / "mutable")
    assert client.post("/v1/score", json=body).status_code == 404
    assert client.post("/v1/score", json=good).json()["scores"] == pytest.approx(first, rel=1e-5)


def test_admins_load_pin_and_unload(folder, server):
    client, service = server
    for headers, status in (({}, 401), ({"Authorization": "Bearer wrong"}, 401), (ADMIN, 200)):
        answer = client.post("/v1/adapters/adalink_9/load", headers=headers)
        assert answer.status_code == status
    assert answer.json()["on_device"]
    assert client.post("/v1/adapters/adalink_9/pin", headers=ADMIN).json()["pinned"]
    listed = client.get("/v1/adapters", params={"limit": 2}).json()
    assert listed["total"] == 6 and listed["next"] == 2
    assert [one["name"] for one in listed["adapters"]] == ["adalink_2", "adalink_9"]
    assert listed["adapters"][1]["pinned"]
    # Twelve slots, of which a call and the texts may need eight.
    assert client.post("/v1/adapters/adalink_many/pin", headers=ADMIN).json()["pinned"]
    refused = client.post("/v1/adapters/own/pin", headers=ADMIN)
    assert refused.status_code == 422 and "4 adapters of a kind can be pinned" in refused.text
    for name in ("adalink_9", "adalink_many"):
        found = client.post(f"/v1/adapters/{name}/unload", headers=ADMIN).json()
        assert not (found["pinned"] or found["on_device"] or found["in_host_memory"])
    assert client.post("/v1/adapters/nobody/unload", headers=ADMIN).status_code == 404
    assert not service.shelf.pinned()


def test_operations_and_the_page(server):
    client, _ = server
    assert client.get("/readyz").json() == {"status": "ready"}
    client.post("/v1/score", json={"text": "a"})
    text = client.get("/metrics").text
    for name in ("requests_total", "request_seconds", "stage_seconds", "call_rows", "waiting"):
        assert f"adalink_{name}" in text
    assert "<title>adalink serve</title>" in client.get("/").text
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/v1/score", "/v1/generate", "/v1/completions", "/v1/models", "/v1/adapters"} <= {
        *paths
    }


def test_a_client_that_leaves_frees_its_slot(server):
    client, service = server
    with client.stream("POST", "/v1/generate", json={"text": "a", "stream": True}):
        pass
    address = client.base_url
    for _ in range(20):  # More than there are slots, each gone before its answer.
        with socket.create_connection((address.host, address.port)) as one:
            body = b'{"text": "a dog", "adapter": "adalink_2"}'
            head = b"POST /v1/generate HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            one.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    assert client.post("/v1/generate", json={"text": "a dog"}).status_code == 200
    gauge = "adalink_texts 0.0"
    until(lambda: gauge in client.get("/metrics").text, 10)
    assert not service.engine._held


def test_too_many_are_refused_and_late_ones_told(mini_base, folder):
    """A device that is busy: its thread waits while requests come."""
    service = served(mini_base, folder[0], limits=SERVER_LIMITS, resident=12)
    honest, row = service.run, service.row
    busy, disk = threading.Event(), threading.Event()

    def slow(rows):
        busy.wait(300)
        return honest(rows)

    def slow_disk(request):
        disk.wait(300)
        return row(request)

    body = {"text": TEXTS[0], "labels": LABELS}
    with running(service, queue=8) as client:
        service.row = slow_disk
        late = [client.post("/v1/score", json={**body, "deadline_ms": 100}) for _ in range(9)]
        # What is late is still read, so the queue is full.
        assert [one.status_code for one in late] == [504] * 8 + [503]
        assert "before the adapter was read" in late[0].text
        disk.set()
        until(lambda: client.post("/v1/score", json=body).status_code == 200)
        service.run = slow
        with concurrent.futures.ThreadPoolExecutor(32) as pool:
            late = pool.submit(client.post, "/v1/score", json={**body, "deadline_ms": 100})
            assert late.result().status_code == 504
            asked = [pool.submit(client.post, "/v1/score", json=body) for _ in range(24)]
            try:
                # Four wait, which is the share of one tenant.
                until(lambda: sum(one.done() for one in asked) == 20)
                refused = [one.result() for one in asked if one.done()]
                assert {one.status_code for one in refused} == {503}
                assert all(one.headers["retry-after"] == "1" for one in refused)
                # Another tenant has its own.
                body["adapter"] = "adalink_2"
                other = pool.submit(client.post, "/v1/score", json=body)
                until(lambda: "adalink_waiting 5.0" in client.get("/metrics").text)
                assert not other.done(), other.result().text
            finally:
                busy.set()
            assert other.result().status_code == 200
            assert sum(one.result().status_code == 200 for one in asked) == 4


def test_tenants_take_turns():
    queue = Fair()
    row = types.SimpleNamespace(request=Request(1, "a"))
    jobs = [Job(row, tenant, 0.0, print) for tenant in "aaaabbc"]  # pyright: ignore
    for job in jobs:
        queue.push(job)
    queue.remove(jobs[1])
    assert len(queue) == 6 and queue.of("a") == 3
    assert "".join(queue.pop().tenant for _ in range(6)) == "abcaba"[:5] + "a"
    assert not queue


def test_the_client(base, folder, server):
    http, _ = server
    with al.Client(str(http.base_url), token="secret") as client:
        assert client.ready()
        found = client.score(TEXTS[0], "adalink_2", LABELS)
        expected = alone(base, folder[1], TEXTS[0], "adalink_2")
        np.testing.assert_allclose(list(found["scores"].values()), expected, atol=1e-4)
        text = client.generate(TEXTS[2], "adalink_9")["text"]
        assert text == greedy(base, folder[1], TEXTS[2], "adalink_9")
        assert "".join(client.stream(TEXTS[2], "adalink_9")) == text
        assert [one["name"] for one in client.adapters()] == sorted([*EVERY, "own"])
        assert client.pin("own")["pinned"] and not client.unload("own")["pinned"]
        assert client.load("own")["on_device"]
        with pytest.raises(al.ServerError, match="no adapter 'nobody'") as error:
            client.score("a", "nobody")
        assert error.value.status == 404 and error.value.request_id
        with pytest.raises(al.ServerError, match="no adapter 'nobody'"):
            list(client.stream("a", "nobody"))
    with pytest.raises(al.ServerError, match="no answer from http://127.0.0.1:9"):
        al.Client("http://127.0.0.1:9", patience=0.2).score("a")


def test_what_is_asked_and_taken_back_does_not_end_the_thread(mini_base):
    batcher = Batcher(served(mini_base, None), Metrics(), queue=8, window=0.0)
    held, going = threading.Event(), threading.Event()
    first = batcher.ask(lambda: (going.set(), held.wait(60)))
    gone = batcher.ask(lambda: pytest.fail("it was taken back"))
    batcher.start()
    assert going.wait(60) and gone.cancel()
    held.set()
    assert first.result(60) and batcher.ask(lambda: 5).result(60) == 5
    batcher.stop()

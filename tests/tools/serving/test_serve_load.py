"""A server under load, kills, and clients that mean no good."""

import concurrent.futures
import contextlib
import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import numpy as np
import pytest

import adalink_jax as al
from tests.tools.serving.served import (
    LABELS,
    METHODS_OF,
    PATIENCE,
    SERVER_LIMITS,
    TEXTS,
    alone,
    greedy,
    running,
    served,
    until,
    write,
)


@contextlib.contextmanager
def process(mini_base, folder, port):
    """A server in a process of its own; yields once it is ready."""
    command = [
        sys.executable, "-m", "adalink_jax", "serve", f"--base={mini_base}",
        f"--adapters={folder}", "--vocabulary=mini", "--inputs=16", "--targets=4",
        "--batch_size=4", "--slots=1", "--warm=0", f"--port={port}",
    ]  # fmt: skip
    started = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert started.stderr
        for line in started.stderr:
            if line.startswith("ready"):
                break
        yield started
    finally:
        started.kill()
        started.wait()


def asked_of(port):
    """A connection on which a text is asked for."""
    one = socket.create_connection(("127.0.0.1", port), timeout=60)
    body = b'{"text": "a dog"}'
    head = b"POST /v1/generate HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    one.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    return one


@pytest.mark.slow
def test_killed_and_started_anew_nothing_is_lost_and_sigterm_drains(base, mini_base, folder):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    expected = alone(base, folder[1], TEXTS[0], "adalink_2")
    answers, stop = [], threading.Event()

    def ask():
        with al.Client(f"http://127.0.0.1:{port}", patience=120) as client:
            while not stop.is_set():
                answers.append([*client.score(TEXTS[0], "adalink_2", LABELS)["scores"].values()])

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        with process(mini_base, folder[0], port) as first:
            asking = [pool.submit(ask) for _ in range(8)]
            until(lambda: len(answers) > 50)
            first.kill()
        with process(mini_base, folder[0], port) as second:
            before = len(answers)
            until(lambda: len(answers) > before + 50)
            assert not any(one.done() for one in asking)
            stop.set()
            for one in asking:
                one.result()
            asked = [asked_of(port) for _ in range(20)]
            time.sleep(0.2)  # Nothing says from outside that a connection was accepted.
            second.send_signal(signal.SIGTERM)
            for one in asked:
                assert one.recv(2**16).startswith(b"HTTP/1.1 200")
                one.close()
            assert second.wait(30) == 128 + signal.SIGTERM
            assert second.stderr and "all that was asked is answered" in second.stderr.read()
    for scores in answers:
        np.testing.assert_allclose(scores, expected, atol=1e-4)


@pytest.mark.slow
def test_two_hundred_clients_among_others_that_vanish_and_send_nonsense(
    base, mini_base, folder, tmp_path
):
    """No answer is another's, no program is compiled, and memory does not grow."""
    place, trees = tmp_path / "adapters", folder[1]
    shutil.copytree(folder[0], place)
    limits = dataclasses.replace(SERVER_LIMITS, rows=16)
    service = served(mini_base, place, limits=limits, resident=24)
    names = [None, "adalink_2", "adalink_9", "adalink_many:r1"]
    cases = [(name, text) for name in names for text in TEXTS]
    scores = {case: alone(base, trees, case[1], case[0]) for case in cases}
    texts = {case: greedy(base, trees, case[1], case[0]) for case in cases}
    end = threading.Event()

    def meddle(address):
        """Writes, damages and deletes an adapter; sends nonsense; leaves before the answer."""
        with httpx.Client(base_url=address, timeout=PATIENCE) as client:
            for number in range(10**9):
                if end.is_set():
                    return
                write(place / "mutable", base, METHODS_OF["adalink_2"], trees["adalink_2"])
                body = {"text": "a", "adapter": "mutable", "labels": LABELS}
                assert client.post("/v1/score", json=body).status_code in (200, 404, 422)
                (place / "mutable" / "adapter.json").write_text("{")
                assert client.post("/v1/score", json=body).status_code in (404, 422)
                shutil.rmtree(place / "mutable")
                assert client.post("/v1/score", content=b"{" * number).status_code == 400
                body["adapter"] = f"nobody_{number}"
                assert client.post("/v1/score", json=body).status_code == 404
                with socket.create_connection((address.host, address.port)) as one:
                    one.sendall(b"POST /v1/score HTTP/1.1\r\nContent-Length: 99\r\n\r\n{")

    def ask(client, number):
        name, text = case = cases[number % len(cases)]
        about = {"text": text, "adapter": name}
        if number % 3:
            found = client.post("/v1/score", json={**about, "labels": LABELS})
            assert found.status_code == 200, found.text
            found = list(found.json()["scores"].values())
            np.testing.assert_allclose(found, scores[case], atol=1e-4, rtol=1e-5)
        else:
            found = client.post("/v1/generate", json=about)
            assert found.status_code == 200, found.text
            assert found.json()["text"] == texts[case]

    with running(service, queue=1024, warm=100) as client:
        address = client.base_url
        with concurrent.futures.ThreadPoolExecutor(202) as pool:
            for number in range(300):  # Shapes that no warming has: labels that are given.
                ask(client, number)
            list(pool.map(lambda n: ask(client, n), range(600)))
            compiled, before = service.engine.programs.compiled, resident()
            meddler = pool.submit(meddle, address)
            try:
                list(pool.map(lambda n: ask(client, n), range(3000)))
            finally:  # Or the pool would wait for the meddler for ever.
                end.set()
            meddler.result()
        assert service.engine.programs.compiled - compiled <= 3
        assert resident() - before < 100 * 2**20
        until(lambda: "adalink_waiting 0.0" in client.get("/metrics").text, 10)


def resident():
    """Bytes of this process in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
def test_a_base_that_is_split_or_stored_in_fewer_bits(mini_base, folder):
    module = "tests.tools.serving.split_process"
    command = [sys.executable, "-m", module, str(mini_base), str(folder[0])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    whole = np.asarray(found["whole"]["scores"])
    np.testing.assert_allclose(found["split"]["scores"], whole, atol=1e-4)
    assert found["split"]["text"] == found["whole"]["text"]
    for name in ("bfloat16", "int8, split"):
        # A base of random weights, whose scores differ by more than this.
        np.testing.assert_allclose(found[name]["scores"], whole, atol=0.5, rtol=0.05)

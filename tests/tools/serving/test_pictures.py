"""Requests with pictures: answered as evaluation answers, and refused in one line."""

import asyncio
import base64
import dataclasses
import json
import types

import jax
import numpy as np
import pytest

import adalink_jax as al
import tasks
from adalink_jax import cli
from adalink_jax.checkpoints import image_encoder, load_base, save_image_encoder
from adalink_jax.data import images
from adalink_jax.methods import METHODS
from adalink_jax.models.t5 import T5Config
from adalink_jax.models.vision.preprocessing import Preprocessing
from adalink_jax.models.vision.vit import ViT, ViTConfig
from adalink_jax.tools.serving import gate, pictures
from adalink_jax.tools.serving.metrics import Metrics
from adalink_jax.tools.serving.requests import Request
from adalink_jax.tools.serving.service import Limits, Service
from tests.data.seeing import Eye, drawn, save
from tests.tools.serving.served import LABELS, TEXTS, running, served, write, written

CONFIG = T5Config(
    vocab_size=384, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=16, num_encoder_layers=1,
    num_decoder_layers=1, mlp_activations=("gelu", "linear"), dropout_rate=0.0, image_width=12,
)  # fmt: skip
METHODS_OF = {
    "separate": METHODS["adalink"](rank=2, by_modality=True, image_rank=3),
    "unified": METHODS["adalink"](rank=3),
}
LIMITS = Limits(inputs=16, targets=8, rows=4, slots=2)
# Text, adapter and picture of some rows; the last two show nothing.
ROWS = [
    (TEXTS[0], "separate", "0.png"), (TEXTS[1], "separate", "1.png"), (TEXTS[0], None, "2.png"),
    (TEXTS[3], "separate", "0.png"), (TEXTS[0], "separate", ""), (TEXTS[0], None, ""),
]  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory, write_base):
    """A base that takes images, its encoder, pictures, and adapters; all in folders."""
    place = tmp_path_factory.mktemp("seeing")
    network = ViT(ViTConfig(12, 1, 2, 16, patch_size=4, image_size=8))
    params = network.init(jax.random.key(0), np.zeros((1, 8, 8, 3), np.float32))["params"]
    preprocessing = Preprocessing(height=8, width=8, shortest_edge=8)
    save_image_encoder(place / "encoder", image_encoder(network, params, preprocessing))
    save(place / "pictures", range(4))
    (place / "pictures/torn.png").write_bytes((place / "pictures/0.png").read_bytes()[:60])
    (place / "pictures/empty.png").write_bytes(b"")
    (place / "secret.png").write_bytes((place / "pictures/0.png").read_bytes())
    base = write_base(CONFIG)
    written(load_base(base), place / "adapters", METHODS_OF)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADALINK_CACHE_DIR", str(place / "cache"))
        yield types.SimpleNamespace(place=place, base=base, encoder=place / "encoder")


@pytest.fixture(scope="module")
def service(world) -> Service:
    made = served(world.base, world.place / "adapters", limits=LIMITS)
    encoder = al.load_image_encoder(world.encoder)
    made.pictures = pictures.Pictures(encoder, str(world.place / "pictures"))
    return made


@pytest.fixture(scope="module")
def evaluated(world) -> dict:
    """What evaluation says of `ROWS`, by row: scores of the labels, and the generated text."""
    of = al.Images(encoder=str(world.encoder), folder=str(world.place / "pictures"))
    found = {}
    for name in dict.fromkeys(name for _, name, _ in ROWS):
        rows = [row for row in ROWS if row[1] == name]
        adapter = None if name is None else world.place / "adapters" / name
        given = [text for text, _, _ in rows]
        options = {"vocabulary": tasks.MINI_VOCABULARY, "images": of, "max_length": 8}
        options |= {"pictures": [key for _, _, key in rows]}
        scored = al.predict(str(world.base), adapter, given, LABELS, **options)
        texts = al.predict(str(world.base), adapter, given, (), **options)
        found |= {r: (s.scores, t.prediction) for r, s, t in zip(rows, scored, texts, strict=True)}
    return found


def sent(world, key: str) -> str:
    """A picture as a data URI."""
    content = (world.place / "pictures" / key).read_bytes()
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


@pytest.mark.slow
def test_a_batch_with_and_without_pictures_answers_as_evaluation(service, evaluated):
    for labels in (LABELS, ()):
        requests = [
            Request(i, text, name, labels, image=image)
            for i, (text, name, image) in enumerate(ROWS, 1)
        ]
        for row, answer in zip(ROWS, service.answers(requests), strict=True):
            if labels:
                assert answer["scores"] == pytest.approx(evaluated[row][0], abs=1e-4), answer
            else:
                assert answer["prediction"] == evaluated[row][1], answer
    first, other = (evaluated[row][0] for row in (ROWS[2], ROWS[5]))
    assert first != pytest.approx(other, abs=1e-3), "the picture says nothing"


@pytest.mark.slow
def test_a_server_answers_as_evaluation(world, service, evaluated):
    """By path, as a data URI, from OpenAI's chat, in a stream, and from the client."""
    with running(service) as client:
        assert 'id="picture" hidden' not in client.get("/").text
        for row in ROWS:
            text, name, image = row
            scores, expected = evaluated[row]
            about = {"text": text, "adapter": name}
            for shown in dict.fromkeys((image, image and sent(world, image))):
                body = {**about, "image": shown, "labels": LABELS}
                found = client.post("/v1/score", json=body).json()
                assert found["scores"] == pytest.approx(scores, abs=1e-4), found
                found = client.post("/v1/generate", json={**about, "image": shown}).json()
                assert found["text"] == expected
            parts = [{"type": "text", "text": text}]
            if image:
                parts.append({"type": "image_url", "image_url": {"url": sent(world, image)}})
            body = {"model": name or "base", "temperature": 0, "max_completion_tokens": 8}
            body["messages"] = [{"role": "user", "content": parts if image else text}]
            found = client.post("/v1/chat/completions", json=body).json()
            assert found["choices"][0]["message"] == {"role": "assistant", "content": expected}
            tokens = len(tasks.MINI_VOCABULARY.encode(text)) + 1 + 4 * bool(image)
            assert found["usage"]["prompt_tokens"] == tokens
            with client.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as s:
                lines = [line[6:] for line in s.iter_lines() if line]
            chunks = [json.loads(line)["choices"][0] for line in lines[:-1]]
            assert "".join(one["delta"]["content"] for one in chunks) == expected
            assert lines[-1] == "[DONE]" and chunks[-1]["finish_reason"]
        compiled = service.engine.programs.compiled
        with al.Client(str(client.base_url)) as asker:
            text, name, image = ROWS[0]
            content = (world.place / "pictures" / image).read_bytes()
            for shown in (content, image):
                found = asker.score(text, name, LABELS, image=shown)
                assert found["scores"] == pytest.approx(evaluated[ROWS[0]][0], abs=1e-4)
                assert asker.generate(text, name, image=shown)["text"] == evaluated[ROWS[0]][1]
                assert "".join(asker.stream(text, name, image=shown)) == evaluated[ROWS[0]][1]
        assert service.engine.programs.compiled == compiled
        _check_refusals(client, world)


def _check_refusals(client, world):
    chat = {"model": "base", "messages": [{"role": "user", "content": "a"}]}
    part = {"type": "image_url", "image_url": {"url": sent(world, "0.png")}}
    two = {"role": "user", "content": [{"type": "text", "text": "a"}, part, part]}
    for path, body, status, words in (
        ("score", {"text": "a", "labels": LABELS, "image": "9.png"}, 422, "no picture '9.png'"),
        ("score", {"text": "a", "labels": LABELS, "image": 3}, 400, "image: "),
        ("generate", {"text": "a", "image": "../secret.png"}, 422, "not a path below"),
        ("generate", {"text": "a", "image": "x" * 2**24 + "y"}, 400, "at most 16777216 char"),
        ("generate", {"text": "x" * 2**20, "image": "x" * 2**24}, 413, "at most 17,825,792"),
        ("completions", {"model": "base", "prompt": "a", "image": "0.png"}, 400, "image: Extra"),
        ("chat/completions", {**chat, "messages": [two]}, 422, "has 2 images"),
        ("chat/completions", {**chat, "messages": [two, two]}, 400, "messages: List should"),
        ("chat/completions", {**chat, "messages": [{"role": "user", "content": [part]}]}, 422,
         "the text is empty"),
        ("chat/completions", {**chat, "messages": [{"role": "system", "content": "a"}]}, 400,
         "role: Input should be 'user'"),
    ):  # fmt: skip
        answer = client.post(f"/v1/{path}", json=body)
        assert answer.status_code == status and words in answer.json()["detail"], answer.text
        assert str(world.place) not in answer.text


WRONG = {
    "9.png": "there is no picture '9.png' in the folder of images",
    "../secret.png": "image '../secret.png' is not a path below the folder of images",
    "/etc/passwd": "is not a path below",
    "a\0b": "is not a path below",
    ".": "is not a path below",
    "https://a.org/0.png": "image 'https://a.org/0.png' is an address, and nothing is fetched here",
    "x" * 5000: "cannot be read: File name too long",
    "torn.png": "picture 'torn.png' is damaged",
    "empty.png": "picture 'empty.png' is empty",
    "fails:7": "picture fails:7 cannot be drawn: IndexError: list index out of range",
    "data:image/png,abc": "a data URI without ';base64,'",
    "data:image/png;base64": "a data URI without ';base64,'",
    "data:;base64,YQ": "the image is no base64",
    "data:;base64,é": "the image is no base64",
    "data:;base64,": "picture of the request is empty",
    "data:;base64,YWJj": "picture of the request is damaged, or no picture",
}


def test_what_is_no_picture_is_one_line(world, service, monkeypatch):
    monkeypatch.setitem(tasks.PICTURES, "fails", lambda index: [][index])
    requests = [
        Request(i, "a", None, LABELS, image=image) for i, image in enumerate(["0.png", *WRONG])
    ]
    good, *bad = service.answers(requests)
    assert good["prediction"] in LABELS
    for answer, words in zip(bad, WRONG.values(), strict=True):
        assert words in answer["error"] and answer["error"].isprintable(), answer
        assert str(world.place) not in answer["error"]


def test_features_are_those_of_training(world):
    encoder = al.load_image_encoder(world.encoder)
    folder = world.place / "pictures"
    keys = ["0.png", "1.png", "3.png"]
    trained = images.Pictures(encoder, folder, stored=False, batch_size=4)
    stored = trained.features(trained.digests(keys)).batch(np.arange(3), np.arange(3), 4)
    shown = pictures.Pictures(encoder, str(folder))
    rows = [shown.read(key) for key in keys]
    found = shown.batch([*rows, None], 4)
    for name, array in stored.items():  # Of batches of one size: to the byte.
        np.testing.assert_array_equal(found[name], array)
    alone = shown.read(sent(world, "2.png"))
    largest = np.abs(stored["encoder_images"]).max()
    (features,) = encoder(encoder.preprocessing.prepare(images.read("2.png", folder))[None])
    found = shown.batch([None, alone], 2)
    np.testing.assert_allclose(found["encoder_images"][1], features, atol=1e-5 * largest)
    np.testing.assert_array_equal(found["encoder_image_mask"], [[0] * 4, [1] * 4])


def test_a_picture_is_seen_once_while_it_stays_what_it_is(tmp_path, monkeypatch):
    save(tmp_path, range(3))
    eye = Eye()
    shown = pictures.Pictures(eye, str(tmp_path))
    first = shown.read("0.png")
    shown.batch([first, shown.read("1.png"), first], 4)
    assert shown.read("0.png") is first and eye.seen == [4] and first.pixels is None
    shown.batch([shown.read("0.png")], 1)
    assert eye.seen == [4]
    save(tmp_path / "other", [1])
    (tmp_path / "other/1.png").rename(tmp_path / "0.png")
    assert shown.read("0.png") is shown.read("1.png")
    monkeypatch.setattr(pictures, "_KEPT_BYTES", 1)  # There is room for one.
    shown.read("2.png")
    assert len(shown._known) == 1 and shown.read("1.png").pixels is not None
    many = [pictures.Picture(eye.preprocessing.prepare(drawn(i))) for i in range(20)]
    found = shown.batch(many, 20)["encoder_images"]
    assert eye.seen == [4, 16, 4]
    np.testing.assert_allclose(found[19], eye.expected(drawn(19)), atol=1e-5)


def test_an_adapter_sees_what_it_was_trained_to_see(world, service):
    base = load_base(world.base)
    method, tree = METHODS_OF["unified"], al.load_adapter(world.place / "adapters/unified").tree
    seen = {"name": "seen", "images": {"pictures": 3}}
    for name, record, named in (
        ("needs", {"image_encoder": service.pictures.identity}, [seen]),
        ("either", {"image_encoder": service.pictures.identity}, [seen, {"name": "read"}]),
        ("other", {"image_encoder": images.identity_of(Eye(), "float32")}, [seen]),
    ):
        data = {**record, "tasks": named}
        write(world.place / "adapters" / name, base, method, tree, data=data)
    asked = [
        Request(i, TEXTS[0], name, LABELS, image=image)
        for i, (name, image) in enumerate(
            [("needs", None), ("needs", ""), ("needs", "0.png"), ("either", None),
             ("either", "0.png"), ("other", "0.png"), ("other", "")]
        )
    ]  # fmt: skip
    blind, *right, wrong, text = service.answers(asked)
    assert "adapter 'needs' was trained on pictures, and the request has no 'im" in blind["error"]
    assert "'other' was trained with another image encoder: its fingerprint" in wrong["error"]
    assert all("scores" in one for one in (*right, text))


def test_a_model_without_an_encoder_has_no_images(mini_base, world):
    request = Request(1, "a", None, LABELS, image="0.png")
    for base, words in (
        (mini_base, "the request has an image, but the base reads text alone"),
        (world.base, "the request has an image, but --image_encoder names no image encoder"),
    ):
        (found,) = served(base, None, limits=LIMITS).answers([request])
        assert found["error"] == words


@pytest.mark.slow
def test_infer_reads_the_files_column(world, service, capsys, tmp_path):
    command = [
        "infer", f"--base={world.base}", f"--adapters={world.place / 'adapters'}",
        "--vocabulary=mini", "--inputs=16", "--targets=8", "--batch_size=4",
        f"--image_encoder={world.encoder}", f"--image_folder={world.place / 'pictures'}",
    ]  # fmt: skip
    tsv, jsonl = tmp_path / "in.tsv", tmp_path / "in.jsonl"
    tsv.write_text("".join(f"{text}\t{name or ''}\t{image}\n" for text, name, image in ROWS))
    fields = [{"text": text, "adapter": name, "image": image} for text, name, image in ROWS]
    bad = {"text": "a", "image": 3}
    jsonl.write_text("".join(json.dumps(one) + "\n" for one in [*fields, bad]))
    requests = [Request(i, *row[:2], image=row[2]) for i, row in enumerate(ROWS, 1)]
    expected = list(service.answers(requests))
    assert cli.main([*command, f"--input={tsv}"]) == 0
    assert [json.loads(one) for one in capsys.readouterr().out.splitlines()] == expected
    assert cli.main([*command, f"--input={jsonl}"]) == 0
    *found, last = [json.loads(one) for one in capsys.readouterr().out.splitlines()]
    assert found == expected and last["error"] == "field 'image' is no string"


@pytest.mark.slow
def test_flags_that_do_not_fit_are_refused(world, mini_base, write_base, capsys):
    wide = write_base(dataclasses.replace(CONFIG, image_width=5))
    encoder = f"--image_encoder={world.encoder}"
    for base, flags, words in (
        (mini_base, [encoder], "--image_encoder is set, but the base reads text alone"),
        (wide, [encoder], "tokens have 12 numbers, but the base takes 5"),
        (world.base, ["--image_encoder=nowhere"], "nowhere does not exist"),
        (world.base, ["--image_folder=pictures"], "--image_folder is set, but --image_encoder"),
        (world.base, [encoder, "--image_folder=nowhere"], "is nowhere, where there is no folder"),
    ):
        given = ["infer", f"--base={base}", "--vocabulary=mini", *flags, "--input=/dev/null"]
        assert cli.main(given) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1, error


def test_bodies_in_memory_are_bounded(monkeypatch):
    """A request that waits holds its body; one more than fits is told to come again."""
    monkeypatch.setattr(gate, "_BODIES", 2)
    waits, told = asyncio.Event(), []

    async def app(scope, receive, send):
        await waits.wait()

    async def ask(guard, size):
        async def receive():
            return {"type": "http.request", "body": b"a" * size, "more_body": False}

        async def send(message):
            told.append(message)

        scope = {"type": "http", "headers": []}
        await guard(scope, receive, send)

    async def main():
        guard = gate.Gate(app, Metrics(), 100, 1.0)
        first = [asyncio.create_task(ask(guard, 100)) for _ in range(2)]
        await asyncio.sleep(0)
        await ask(guard, 1)
        assert told[0]["status"] == 503 and (b"retry-after", b"1") in told[0]["headers"]
        waits.set()
        await asyncio.gather(*first)
        await ask(guard, 100)
        assert guard._held == 0 and len(told) == 2

    asyncio.run(main())

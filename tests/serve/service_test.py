"""The service by HTTP, with a fake model: answers, mistakes, limits, ends."""

import base64
import io
import json
import threading
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from flowtok_jax.serve import limits as limits_file
from tests.serve.fake import (
    JSON,
    SIDE,
    FakeEngine,
    client_of,
    colour,
    error_of,
    make_service,
)

DRAW = "/v1/images/generations"
CAPTION = "/v1/captions"


@pytest.fixture(scope="module")
def client():
    with client_of(make_service()) as found:
        yield found


def png(value=128, size=(SIDE, SIDE), kind="png") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (value,) * 3).save(file, kind)
    return file.getvalue()


def open_picture(item) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(item["b64_json"])))


def test_a_prompt_becomes_a_picture_that_says_how_it_was_drawn(client):
    answer = client.post(DRAW, json={"prompt": "a fox €", "seed": 3})
    assert answer.status_code == 200
    (item,) = answer.json()["data"]
    picture = open_picture(item)
    np.testing.assert_array_equal(np.asarray(picture), colour("a fox €", 3, 2.0))
    assert picture.text["Description"] == "a fox €"
    assert picture.text["recipe"] == "a fox ?"
    how = json.loads(picture.text["Comment"])
    options = {"steps": 20, "scale": 2.0, "solver": "euler", "source": "sample"}
    assert how == {"prompt": "a fox €", "seed": 3, "model": "fake", **options}
    assert answer.json()["options"] == options


def test_pictures_come_prompt_by_prompt_with_seeds_that_count_on(client):
    asked = {"prompt": ["a", "b"], "n": 3, "seed": 2**32 - 2, "scale": 1.51}
    data = client.post(DRAW, json=asked).json()["data"]
    wanted = [(p, s) for p in "ab" for s in (2**32 - 2, 2**32 - 1, 0)]
    assert [(x["prompt"], x["seed"]) for x in data] == wanted
    for item, (prompt, seed) in zip(data, wanted, strict=True):
        drawn = np.asarray(open_picture(item))
        np.testing.assert_array_equal(drawn, colour(prompt, seed, 1.5))


@pytest.mark.parametrize(
    ("kind", "asked"),
    [
        ("generations", {"prompt": ["a xyz1 fox", "xyz2 xyz1"]}),
        ("interpolations", {"prompts": ["xyz1", "a xyz2"]}),
    ],
)
def test_words_that_the_model_cannot_know_are_told(client, kind, asked):
    answer = client.post(f"/v1/images/{kind}", json=asked).json()
    assert answer["unknown_words"] == ["xyz1", "xyz2"]
    known = client.post(DRAW, json={"prompt": "a fox"}).json()
    assert "unknown_words" not in known


def test_a_seed_that_is_not_given_is_told(client):
    items = [
        client.post(DRAW, json={"prompt": "a"}).json()["data"][0] for _ in range(2)
    ]
    assert items[0]["seed"] != items[1]["seed"]
    again = client.post(DRAW, json={"prompt": "a", "seed": items[0]["seed"]}).json()
    assert again["data"][0]["b64_json"] == items[0]["b64_json"]


@pytest.mark.parametrize("size", [None, "auto", f"{SIDE}x{SIDE}"])
def test_openai_s_other_fields_are_understood(client, size):
    asked = {"prompt": "a", "model": "fake", "size": size, "user": "me"}
    asked |= {"response_format": "b64_json", "output_format": "png", "quality": "auto"}
    assert client.post(DRAW, json=asked).status_code == 200


@pytest.mark.parametrize(
    ("changes", "param", "said"),
    [
        ({"prompt": ""}, "prompt", "at least 1 character"),
        ({"prompt": " \n"}, "prompt", "pattern"),
        ({"prompt": "x" * 1001}, "prompt", "at most 1000"),
        ({"prompt": 3}, "prompt", "valid string, got 3"),
        ({"prompt": []}, "prompt", "string"),
        ({"prompt": ["a"] * 17}, "prompt", "string"),
        ({"prompt": None}, "prompt", "string"),
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"n": 17}, "n", "less than or equal to 16"),
        ({"n": "2"}, "n", "valid integer, got '2'"),
        ({"n": True}, "n", "valid integer"),
        ({"n": 9, "prompt": ["a", "b"]}, "n", "18 pictures; expected 16 at most"),
        ({"size": "256x256"}, "size", "expected 8x8"),
        ({"size": "x" * 30}, "size", "at most 20"),
        ({"response_format": "url"}, "response_format", "b64_json"),
        ({"seed": -1}, "seed", "greater than or equal"),
        ({"seed": 2**32}, "seed", "less than 4294967296"),
        ({"seed": 1.5}, "seed", "integer"),
        ({"steps": 101}, "steps", "less than or equal to 100"),
        ({"scale": 21}, "scale", "less than or equal to 20"),
        ({"solver": "magic"}, "solver", "'euler'"),
        ({"solver": "heun"}, None, "expected euler"),
        ({"source": "noise"}, "source", "'sample' or 'mean'"),
        ({"colour": "red"}, "colour", "is no field"),
    ],
)
def test_a_wrong_field_is_named_in_one_line(client, changes, param, said):
    answer = client.post(DRAW, json={"prompt": "a"} | changes)
    assert said in error_of(answer, 400)
    assert answer.json()["error"]["param"] == param
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_another_model_is_not_there(client):
    answer = client.post(DRAW, json={"prompt": "a", "model": "dall-e-3"})
    assert "'dall-e-3'; expected 'fake'" in error_of(answer, 404)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"prompt": "\\ud83d"}',
        b'{"prompt": "a", "scale": NaN}',
        b'{"prompt": "a", "scale": 1e999}',
        b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}",
        b'{"prompt": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    ],
)
def test_a_body_that_is_no_request_is_refused(client, body):
    error_of(client.post(DRAW, content=body, headers=JSON), 400)


def test_other_kinds_paths_and_methods_are_refused(client):
    assert "expected application/json" in error_of(
        client.post(DRAW, content=b"prompt=a"), 415
    )
    assert error_of(client.get("/etc/passwd"), 404)
    assert error_of(client.get("/..%2f..%2fetc/passwd"), 404)
    assert error_of(client.get(DRAW), 405)


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "gif", "bmp"])
def test_an_uploaded_picture_is_described(client, kind):
    files = {"image": ("a", png(255, (20, 30), kind))}
    answer = client.post(CAPTION, files=files, data={"seed": "7", "steps": "3"})
    assert answer.json()["data"] == [{"caption": "mean 1.00 seed 7", "seed": 7}]


@pytest.mark.parametrize("head", ["", "data:image/png;base64,"])
def test_a_picture_in_base64_is_described(client, head):
    image = head + base64.b64encode(png(0)).decode()
    answer = client.post(CAPTION, json={"image": image, "seed": 1})
    assert answer.json()["data"] == [{"caption": "mean 0.00 seed 1", "seed": 1}]


@pytest.mark.parametrize(
    ("image", "status", "said"),
    [
        ("", 400, "at least 1 character"),
        ("?!", 400, "no base64"),
        ("data:image/png,abc", 400, "without base64"),
        (base64.b64encode(b"hello").decode(), 400, "is no image"),
        (base64.b64encode(png()[:40]).decode(), 400, "cannot be read"),
        (base64.b64encode(b"<svg></svg>").decode(), 400, "of this kind"),
        ("/etc/passwd", 400, "no base64"),
        ("https://example.org/a.png", 400, "no base64"),
        (3, 400, "valid string"),
    ],
)
def test_what_is_no_picture_is_refused(client, image, status, said):
    assert said in error_of(client.post(CAPTION, json={"image": image}), status)


@pytest.mark.parametrize(
    ("kind", "fields", "told"),
    [
        ("variations", {"strength": "0.33"}, {"n": 3, "strength": 0.3}),
        ("variations", {"n": "2"}, {"n": 2, "strength": 0.3}),
        (
            "edits",
            {"prompt": "a cat", "n": "1", "response_format": "b64_json"},
            {"before": None, "prompt": "a cat", "strength": 0.5},
        ),
        (
            "edits",
            {"prompt": "a cat", "before": "a dog", "strength": "0"},
            {"before": "a dog", "prompt": "a cat", "strength": 0.0},
        ),
    ],
)
def test_a_picture_is_edited(client, kind, fields, told):
    path = f"/v1/images/{kind}"
    form = client.post(path, files={"image": png()}, data=fields | {"seed": "4"})
    image = base64.b64encode(png()).decode()
    numbers = {"n": int, "strength": float}
    converted = {k: numbers.get(k, str)(v) for k, v in fields.items()}
    as_json = client.post(path, json={"image": image, "seed": 4, **converted})
    for answer in (form, as_json):
        (item,) = answer.json()["data"]
        assert (item["prompt"], item["seed"]) == (str(told), 4)
        how = json.loads(open_picture(item).text["Comment"])
        assert how["edit"] == kind
        assert "recipe" not in open_picture(item).text  # it cannot be drawn again


def test_prompts_are_gone_between(client):
    asked = {"prompts": ["a", "b"], "seed": 4}
    (item,) = client.post("/v1/images/interpolations", json=asked).json()["data"]
    assert item["prompt"] == str({"prompts": ["a", "b"], "columns": 8})


@pytest.mark.parametrize(
    ("kind", "asked", "said"),
    [
        ("interpolations", {"prompts": ["a"]}, "prompts"),
        ("interpolations", {"prompts": ["a", "b"], "columns": 5}, "4, 6 or 8"),
        ("interpolations", {"prompts": ["a", ""]}, "prompts"),
        ("variations", {}, "image"),
        ("variations", {"image": "?"}, "base64"),
        ("variations", {"image": "aaaa", "strength": 2}, "strength"),
        ("variations", {"image": "aaaa", "size": "1x1"}, "expected 8x8"),
        ("edits", {"image": "aaaa"}, "prompt"),
        ("edits", {"image": "aaaa", "prompt": "a"}, "is no image"),
        ("edits", {"image": "aaaa", "prompt": "a", "n": 2}, "n: "),
    ],
)
def test_an_edit_that_is_wrong_is_refused(client, kind, asked, said):
    assert said in error_of(client.post(f"/v1/images/{kind}", json=asked), 400)


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ({"data": {"seed": "1"}, "files": {"other": b"x"}}, "image is missing"),
        ({"files": {"image": b""}}, "the file is empty"),
        ({"files": {"image": png()}, "data": {"seed": "one"}}, "valid integer"),
        ({"files": {"image": png()}, "data": {"colour": "red"}}, "is no field"),
        ({"files": [("image", png()), ("image", png())]}, "Too many files"),
        (
            {"content": b"x", "headers": {"content-type": "multipart/form-data"}},
            "boundary",
        ),
        (
            {
                "content": b"no part",
                "headers": {"content-type": "multipart/form-data; boundary=a"},
            },
            "cannot be read",
        ),
    ],
)
def test_a_form_that_is_wrong_is_refused(client, form, said):
    assert said in error_of(client.post(CAPTION, **form), 400)


def test_a_decompression_bomb_is_refused_by_its_header():
    with client_of(make_service(pixels=10_000)) as client:
        bomb = png(0, (101, 100))
        said = error_of(client.post(CAPTION, files={"image": bomb}), 400)
        assert "too many pixels; expected 10000 at most" in said
        fits = client.post(CAPTION, files={"image": png(0, (100, 100))})
        assert fits.status_code == 200


def test_pillow_s_own_bomb_is_refused(client):
    """A PNG of 50,000 x 50,000 pixels, in 300 kB that would become 7.5 GB."""
    head = png(0)
    size = (50_000).to_bytes(4, "big") * 2
    body = head[:16] + size + head[24:29]
    crc = zlib.crc32(body[12:29]).to_bytes(4, "big")
    bomb = body + crc + head[33:]
    said = error_of(client.post(CAPTION, files={"image": bomb}), 400)
    assert "too many pixels" in said


def test_a_large_upload_is_refused_before_it_is_read():
    with client_of(make_service(upload=1000)) as client:
        large = make_service(upload=1000).limits.body + 1
        headers = {"content-length": str(100 * limits_file.MIB), **JSON}
        assert "larger than" in error_of(client.post(DRAW, headers=headers), 413)
        assert "larger than" in error_of(client.post(DRAW, content=b"x" * large), 413)

        def parts():
            for _ in range(2 + large // 65536):
                yield b"x" * 65536

        answer = client.post(DRAW, content=parts(), headers=JSON)
        assert "larger than" in error_of(answer, 413)
        files = {"image": b"x" * 1001}
        assert "1001 bytes; expected 1000" in error_of(
            client.post(CAPTION, files=files), 413
        )
        asked = {"image": base64.b64encode(b"x" * 1001).decode()}
        assert "1001 bytes" in error_of(client.post(CAPTION, json=asked), 413)


def test_health_is_503_until_the_model_is_warm():
    engine = FakeEngine()
    engine.warm_gate.clear()
    with client_of(make_service(engine), waits=False) as client:
        health = client.get("/health")
        assert (health.status_code, health.json()["status"]) == (503, "warming up")
        answer = client.post(DRAW, json={"prompt": "a"})
        assert error_of(answer, 503) == "warming up"
        assert answer.headers["retry-after"] == "5"
        engine.warm_gate.set()
        end = time.monotonic() + 10
        while client.get("/health").status_code != 200:
            assert time.monotonic() < end
        assert client.post(DRAW, json={"prompt": "a"}).status_code == 200


def in_background(call):
    """Runs a call in a thread; its result is what the list has in the end."""
    found = []
    thread = threading.Thread(target=lambda: found.append(call()))
    thread.start()
    return thread, found


def wait_for(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_a_full_queue_says_when_to_come_again():
    engine = FakeEngine()
    with client_of(make_service(engine, depth=4)) as client:
        engine.gate.clear()

        def ask(n):
            return client.post(DRAW, json={"prompt": "a", "n": n, "seed": 0})

        waiting = [in_background(lambda: ask(1))]
        wait_for(lambda: engine.batches)
        waiting.append(in_background(lambda: ask(3)))
        wait_for(lambda: client.get("/health").json()["waiting"] == 3)
        answer = ask(2)
        assert "3 rows are waiting" in error_of(answer, 429)
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.json()["error"]["type"] == "rate_limit_error"
        engine.gate.set()
        for thread, found in waiting:
            thread.join()
            assert found[0].status_code == 200
        assert ask(4).status_code == 200


def test_a_request_that_takes_too_long_is_given_up():
    engine = FakeEngine()
    with client_of(make_service(engine, seconds=0.05)) as client:
        engine.gate.clear()
        assert "too long" in error_of(client.post(DRAW, json={"prompt": "a"}), 504)
        engine.gate.set()
        assert client.get("/health").json()["waiting"] == 0


def test_a_fault_of_the_model_is_one_request_s_alone():
    engine = FakeEngine()
    with client_of(make_service(engine)) as client:
        engine.fails = True
        answer = client.post(DRAW, json={"prompt": "a"})
        assert "lines" not in error_of(answer, 500)  # the log alone says what failed
        engine.fails = False
        assert client.post(DRAW, json={"prompt": "a"}).status_code == 200


def test_many_clients_get_their_own_pictures():
    engine = FakeEngine()
    with client_of(make_service(engine, depth=1000)) as client:

        def ask(i):
            asked = {"prompt": f"picture {i}", "seed": i, "n": 1 + i % 2}
            return i, client.post(DRAW, json=asked).json()["data"]

        engine.gate.clear()
        asking = [in_background(lambda i=i: ask(i)) for i in range(40)]
        wait_for(lambda: client.get("/health").json()["waiting"] > 50)
        engine.gate.set()
        for thread, found in asking:
            thread.join()
            i, data = found[0]
            for k, item in enumerate(data):
                drawn = np.asarray(open_picture(item))
                wanted = colour(f"picture {i}", i + k, 2.0)
                np.testing.assert_array_equal(drawn, wanted)
        assert sum(count for _, count in engine.batches) == 60
        assert len(engine.batches) <= 20


def test_the_numbers_count_requests_and_batches(client):
    client.get("/nowhere/at/all")
    client.post(DRAW, json={"prompt": "a", "n": 4})
    text = client.get("/metrics").text
    assert 'flowtok_requests_total{path="other",status="404"}' in text
    assert f'flowtok_requests_total{{path="{DRAW}",status="200"}}' in text
    assert "nowhere" not in text
    assert 'flowtok_batch_rows_bucket{le="4.0"}' in text
    assert "flowtok_queue_rows 0.0" in text


@pytest.mark.parametrize("path", ["/", "/docs", "/app.js", "/style.css", "/api.js"])
def test_the_page_comes_from_here_alone(client, path):
    answer = client.get(path)
    assert answer.status_code == 200
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert "//" not in answer.text.replace("// ", "").replace("http://www.w3.org", "")
    for style in ("onclick", "style=", "<script>"):  # the policy forbids them
        assert style not in answer.text


def test_the_page_is_small(client):
    parts = ("/", "/app.js", "/style.css", "/icon.svg", "/v1/models")
    assert sum(len(client.get(part).content) for part in parts) < 40_000


def test_the_model_says_what_it_can_do(client):
    (model,) = client.get("/v1/models").json()["data"]
    assert (model["id"], model["image_size"]) == ("fake", SIDE)
    assert model["draws"]
    assert model["describes"]
    assert model["sample"]["num_steps"] == 20

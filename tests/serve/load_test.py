"""benchmarks/serving.py against a fake model: what it counts is so."""

import hashlib
import types

from benchmarks import serving
from tests.serve.fake import colour, served


def test_answers_are_counted_and_told_apart():
    with served(depth=40, batch_seconds=0.01) as (address, _):
        port = int(address.rpartition(":")[2])
        answers = serving.ask_all(port, range(30), 8)
        assert answers.summary()["answered"] == 30
        for i in range(30):
            asked = serving.body_of(i)
            wanted = colour(asked["prompt"], asked["seed"], 2.0)
            assert answers.pictures[i] == hashlib.sha256(wanted.tobytes()).hexdigest()
        assert len(set(answers.pictures.values())) == 30
        server = types.SimpleNamespace(port=port)
        statuses = serving.measure_refusals(server)["statuses"]
        assert statuses.keys() == {"200", "429"}
        assert sum(statuses.values()) == 64

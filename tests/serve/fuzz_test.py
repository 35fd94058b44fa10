"""Whatever fits the interface, or does not: an answer that the description knows."""

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from flowtok_jax.serve.edits import EDITS
from tests.serve.fake import served

CHECKS = [
    not_a_server_error,
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
]


@pytest.fixture(scope="module")
def schema():
    """The description of a service that lives on after all of it."""
    with served() as (address, process):
        yield schemathesis.openapi.from_url(f"{address}/openapi.json")
        assert process.poll() is None


@pytest.mark.parametrize("mode", list(GenerationMode))
@pytest.mark.parametrize(
    "path", ["images/generations", "captions", *(f"images/{kind}" for kind in EDITS)]
)
def test_every_answer_is_one_that_is_described(schema, path, mode):
    operation = schema[f"/v1/{path}"]["POST"]

    @settings(
        max_examples=20,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def check(case):
        answer = case.call(timeout=30)
        case.validate_response(answer, checks=CHECKS)
        if answer.status_code >= 400:
            message = answer.json()["error"]["message"]
            assert message
            assert "\n" not in message

    check()


@pytest.mark.parametrize("path", ["/health", "/metrics", "/v1/models"])
def test_what_is_asked_for_without_a_body_is_as_described(schema, path):
    case = schema[path]["GET"].Case()
    case.validate_response(case.call(timeout=30), checks=CHECKS)

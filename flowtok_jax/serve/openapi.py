"""The description of the interface, in OpenAPI, from the models that check bodies."""

from typing import Any

from pydantic.json_schema import models_json_schema

import flowtok_jax
from flowtok_jax.serve.requests import (
    EDIT_BODIES,
    CaptionRequest,
    DescribedAnswer,
    DrawnAnswer,
    Faulty,
    ImageRequest,
)

REFERENCE = "#/components/schemas/{model}"
# Every operation that computes may end in these.
ERRORS = {
    "400": "A field is wrong, or an image cannot be read.",
    "404": "There is no such model.",
    "408": "The body was too slow.",
    "413": "The body is too large.",
    "415": "The body is neither JSON nor a form.",
    "429": "The queue is full; Retry-After says when to come again.",
    "500": "A fault of the service.",
    "503": "The service is warming up or ending.",
    "504": "It took too long.",
}
ABOUT = {
    "interpolations": "Draws the way from one prompt to another.",
    "variations": "Draws pictures around one.",
    "edits": "Changes what a picture shows.",
}


def _refer(kind: type) -> dict[str, str]:
    return {"$ref": REFERENCE.format(model=kind.__name__)}


def _json(kind: type) -> dict[str, Any]:
    return {"application/json": {"schema": _refer(kind)}}


def _form_of(kind: type) -> dict[str, Any]:
    """Describes a body's fields in a multipart form, its image as a file; if any."""
    if "image" not in kind.model_fields:
        return {}
    schema = kind.model_json_schema(ref_template=REFERENCE)
    image = {"type": "string", "format": "binary", "description": "An image file."}
    properties = {**schema["properties"], "image": image}
    required = schema["required"]
    form = {"type": "object", "properties": properties, "required": required}
    return {"multipart/form-data": {"schema": form}}


def _operation(
    name: str, about: str, body: dict[str, Any], answer: type
) -> dict[str, Any]:
    errors = {
        status: {"description": text, "content": _json(Faulty)}
        for status, text in ERRORS.items()
    }
    found = {"200": {"description": "Done.", "content": _json(answer)}}
    return {
        "post": {
            "operationId": name,
            "summary": about,
            "requestBody": {"required": True, "content": body},
            "responses": found | errors,
        }
    }


def _getter(
    name: str, about: str, kind: str, more: dict[str, str] | None = None
) -> dict[str, Any]:
    content = {kind: {"schema": {} if kind != "text/plain" else {"type": "string"}}}
    statuses = {"200": about} | (more or {})
    answers = {s: {"description": d, "content": content} for s, d in statuses.items()}
    return {"get": {"operationId": name, "summary": about, "responses": answers}}


def describe_api(model: str, image_size: int) -> dict[str, Any]:
    """Returns the description of a model's service.

    Args:
        image_size: pixels of a side of the pictures.
    """
    bodies = (ImageRequest, CaptionRequest, *EDIT_BODIES.values())
    kinds = (*bodies, DrawnAnswer, DescribedAnswer, Faulty)
    # Answers have no defaults: both modes of pydantic's describe them alike.
    modes = [(kind, "validation") for kind in kinds]
    _, definitions = models_json_schema(modes, ref_template=REFERENCE)
    captions = _json(CaptionRequest) | _form_of(CaptionRequest)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": f"FlowTok: {model}",
            "version": flowtok_jax.__version__,
            "description": f"Draws {image_size} x {image_size} pictures of captions, "
            "and describes pictures. A picture depends on its prompt, seed and options "
            "only, never on the requests that it is computed with.",
        },
        "paths": {
            "/v1/images/generations": _operation(
                "generate", "Draws pictures.", _json(ImageRequest), DrawnAnswer
            ),
            "/v1/captions": _operation(
                "describe", "Describes a picture.", captions, DescribedAnswer
            ),
            **{
                f"/v1/images/{kind}": _operation(
                    kind, ABOUT[kind], _json(body) | _form_of(body), DrawnAnswer
                )
                for kind, body in EDIT_BODIES.items()
            },
            "/v1/models": _getter("models", "The model.", "application/json"),
            "/health": _getter(
                "health", "Ready.", "application/json", {"503": "Not ready yet."}
            ),
            "/metrics": _getter("metrics", "Numbers for Prometheus.", "text/plain"),
        },
        "components": {"schemas": definitions["$defs"]},
    }

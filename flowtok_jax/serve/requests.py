"""Bodies of requests and answers, by which they are checked and described."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from flowtok_jax.flow.samplers import AVERAGE, SOLVERS
from flowtok_jax.sampling import SOURCES
from flowtok_jax.serve.limits import Limits

LIMITS = Limits()
MOST_STEPS = 100
MOST_SCALE = 20.0
# Something of a prompt can be seen: a blank one is a slip of a finger.
Prompt = Annotated[
    str, StringConstraints(min_length=1, max_length=LIMITS.prompt, pattern=r"\S")
]
Seed = Annotated[int, Field(ge=0, lt=2**32)]

UPLOAD: Any = Field(
    min_length=1,
    max_length=LIMITS.body,
    description="An image file in base64, or as a data URL; in a multipart form the "
    "file itself.",
)


class Body(BaseModel):
    """Base of the bodies: unknown fields are refused, and no type becomes another."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Sampled(Body):
    """Extensions that say how the flow is run; a model has its own value of each."""

    seed: Seed | None = Field(
        None, description="Seed of the noise; drawn at random where it is absent."
    )
    steps: int | None = Field(
        None, ge=1, le=MOST_STEPS, description="Steps of the solver."
    )
    scale: float | None = Field(
        None,
        ge=0,
        le=MOST_SCALE,
        description="Strength of the guidance, in tenths; 1 is without.",
    )
    solver: Literal[*SOLVERS, AVERAGE] | None = Field(
        None, description="Solver; average is of weights that were distilled."
    )
    source: Literal[*SOURCES] | None = Field(
        None, description="sample: pictures differ by seed; mean: one a prompt."
    )

    def options(self) -> dict[str, int | float | str]:
        """Returns the options that are given, by their names in SampleOptions."""
        # Every scale is another program: tenths keep their number small.
        scale = None if self.scale is None else round(self.scale, 1)
        found = {"num_steps": self.steps, "scale": scale, "solver": self.solver}
        found["source"] = self.source
        return {name: value for name, value in found.items() if value is not None}


class ImageRequest(Sampled):
    """Pictures to draw, as OpenAI's images.generate asks for them."""

    prompt: Prompt | Annotated[list[Prompt], Field(min_length=1, max_length=16)] = (
        Field(description="What to draw, or a list of it.")
    )
    n: int = Field(1, ge=1, le=LIMITS.rows, description="Pictures of each prompt.")
    model: str | None = Field(None, description="Name of the model, or nothing.")
    size: str | None = Field(
        None, max_length=20, description="The model's own, as 64x64, auto or nothing."
    )
    # OpenAI's default is a URL, for which pictures would have to be kept.
    response_format: Literal["b64_json"] | None = Field(
        None, description="Pictures come in the answer; there are no URLs."
    )
    # Fields that OpenAI's clients may send, with the one value that is true here.
    output_format: Literal["png"] | None = None
    quality: Literal["auto", "standard"] | None = None
    user: str | None = Field(None, max_length=1000, description="Not used.")

    @property
    def prompts(self) -> list[str]:
        """The prompts, one or several."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt


class CaptionRequest(Sampled):
    """A picture to describe."""

    image: str = UPLOAD
    model: str | None = Field(None, description="Name of the model, or nothing.")


class OpenaiFields(Body):
    """Fields that OpenAI's clients may send with an image, where these are true."""

    model: str | None = Field(None, description="Name of the model, or nothing.")
    size: str | None = Field(None, max_length=20, description="The model's own.")
    response_format: Literal["b64_json"] | None = None
    user: str | None = Field(None, max_length=1000, description="Not used.")


class InterpolationRequest(Body):
    """Pictures on the way from one prompt to another."""

    prompts: Annotated[list[Prompt], Field(min_length=2, max_length=2)] = Field(
        description="The two ends."
    )
    columns: Literal[4, 6, 8] = Field(8, description="Pictures, with both ends.")
    seed: Seed | None = Field(None, description="Seed of the noise at both ends.")

    def arguments(self) -> dict[str, Any]:
        """Returns the arguments of the edit."""
        return {"prompts": self.prompts, "columns": self.columns}


class VariationRequest(OpenaiFields):
    """Pictures around one, as OpenAI's images.create_variation asks for them."""

    image: str = UPLOAD
    n: int = Field(3, ge=1, le=8, description="Pictures.")
    strength: float = Field(
        0.3, ge=0, le=1, description="How much may change, in tenths."
    )
    seed: Seed | None = Field(None, description="Seed of the first one.")

    def arguments(self) -> dict[str, Any]:
        """Returns the arguments of the edit."""
        # Each strength is a program of its own.
        return {"n": self.n, "strength": round(self.strength, 1)}


class EditRequest(OpenaiFields):
    """A picture that shows something else, as OpenAI's images.edit asks for it."""

    image: str = UPLOAD
    prompt: Prompt = Field(description="What it should show.")
    before: Prompt | None = Field(
        None, description="What it shows; read off it where absent."
    )
    n: int = Field(1, ge=1, le=1, description="An edit has one outcome.")
    strength: float = Field(
        0.5, ge=0, le=1, description="Share of the picture's own noise to leave out."
    )
    seed: Seed | None = Field(None, description="Not used.")

    def arguments(self) -> dict[str, Any]:
        """Returns the arguments of the edit."""
        own = {"before": self.before, "prompt": self.prompt}
        return own | {"strength": self.strength}


class Picture(BaseModel):
    """A picture that was drawn."""

    b64_json: str = Field(description="A PNG file in base64; it says how it was drawn.")
    seed: int
    prompt: str


class DrawnAnswer(BaseModel):
    """Pictures, prompt by prompt, each prompt's by seed."""

    created: int
    data: list[Picture]
    options: dict[str, int | float | str] | None = None
    unknown_words: list[str] | None = Field(
        None, description="Words of the prompts that the model does not know, if any."
    )
    seconds: float


class Caption(BaseModel):
    """Caption of a picture."""

    caption: str
    seed: int


class DescribedAnswer(BaseModel):
    """Captions of pictures."""

    created: int
    data: list[Caption]
    seconds: float


class Fault(BaseModel):
    """Mistake of a request, in one line."""

    message: str
    type: str
    param: str | None
    code: str | None


class Faulty(BaseModel):
    """An error, in the form that OpenAI's have."""

    error: Fault


# Bodies of the edits, by the last part of the path.
EDIT_BODIES = {
    "interpolations": InterpolationRequest,
    "variations": VariationRequest,
    "edits": EditRequest,
}

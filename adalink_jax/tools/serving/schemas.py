"""What a server's requests and answers hold: JSON objects, checked by pydantic."""

from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, field_validator

from adalink_jax.tools.serving.requests import LONGEST_IMAGE, LONGEST_NAME, MOST_LABELS

_Text = Annotated[str, Field(description="what the model reads")]
_About = "a picture: a data URI in base64, or a path below the server's folder"
_Image = Annotated[
    str | None, Field(max_length=LONGEST_IMAGE, description=f'{_About}; "" for the text alone')
]
_Adapter = Annotated[
    str | None,
    Field(
        min_length=1,
        max_length=LONGEST_NAME,
        description="NAME, or NAME:ROUTE for an adapter with several routes; null for the base",
    ),
]
_Id = Annotated[str | int | None, Field(description="repeated in the answer")]
_Deadline = Annotated[
    int | None, Field(gt=0, description="milliseconds after which the answer is of no more use")
]
_Temperature = Annotated[float, Field(ge=0, le=100, description="0 takes the most likely token")]
_TopP = Annotated[
    float, Field(gt=0, le=1, description="draws of the most likely tokens of this probability")
]
_Seed = Annotated[
    int | None, Field(ge=0, lt=2**31, description="equal seeds draw equal texts; null for any")
]
_MaxTokens = Annotated[int | None, Field(gt=0, description="null for the server's most")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _whole_characters(cls, value: Any) -> Any:
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str):
                try:
                    text.encode("utf-8")
                except UnicodeEncodeError as error:
                    half = text[error.start]
                    raise ValueError(f"half of a character, {half!r}") from error
        return value


class ScoreRequest(_Strict):
    """Labels to choose from; the adapter's own where none are given."""

    text: _Text
    adapter: _Adapter = None
    image: _Image = None
    labels: Annotated[list[str], Field(max_length=MOST_LABELS)] | None = None
    id: _Id = None
    deadline_ms: _Deadline = None


class ScoreAnswer(BaseModel):
    """The likeliest label, and the log-likelihood of each."""

    adapter: str | None
    prediction: str
    scores: dict[str, float]
    truncated_tokens: int = 0
    id: str | int | None = None


class GenerateRequest(_Strict):
    """A text to answer by a text."""

    text: _Text
    adapter: _Adapter = None
    image: _Image = None
    max_tokens: _MaxTokens = None
    temperature: _Temperature = 0.0
    top_p: _TopP = 1.0
    seed: _Seed = None
    beam_size: Annotated[int, Field(ge=1, le=64, description="1 is no beam search")] = 1
    stream: Annotated[bool, Field(description="tokens as server-sent events")] = False
    id: _Id = None
    deadline_ms: _Deadline = None


class GenerateAnswer(BaseModel):
    """A generated text, and why it ended."""

    adapter: str | None
    text: str
    finish_reason: Literal["stop", "length"]
    tokens: int
    truncated_tokens: int = 0
    id: str | int | None = None


class CompletionRequest(_Strict):
    """OpenAI's completions, of adapters as models."""

    model: Annotated[str, Field(min_length=1, max_length=LONGEST_NAME)]
    prompt: str | Annotated[list[str], Field(min_length=1, max_length=64)]
    max_tokens: _MaxTokens = None
    temperature: _Temperature = 1.0
    top_p: _TopP = 1.0
    seed: _Seed = None
    stream: bool = False
    n: Annotated[int, Field(ge=1, le=1)] = 1
    user: str | None = None


class TextPart(_Strict):
    """A part of a message's content that is text."""

    type: Literal["text"]
    text: _Text


class ImageUrl(_Strict):
    """OpenAI's way to a picture; nothing is fetched from elsewhere."""

    url: Annotated[str, Field(min_length=1, max_length=LONGEST_IMAGE, description=_About)]
    detail: Annotated[
        Literal["auto", "low", "high"], Field(description="an encoder has one size of pictures")
    ] = "auto"


class ImagePart(_Strict):
    """A part of a message's content that is a picture."""

    type: Literal["image_url"]
    image_url: ImageUrl


_Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Message(_Strict):
    """What a user says: a text, or parts of which one may be a picture."""

    role: Literal["user"]
    content: str | Annotated[list[_Part], Field(min_length=1, max_length=64)]

    @property
    def text(self) -> str:
        """Its text, with a line for each part."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content if isinstance(part, TextPart))

    @property
    def images(self) -> list[str]:
        """Its pictures."""
        parts = [] if isinstance(self.content, str) else self.content
        return [part.image_url.url for part in parts if isinstance(part, ImagePart)]


class ChatRequest(_Strict):
    """OpenAI's chat completions, of one message: T5 knows no conversation."""

    model: Annotated[str, Field(min_length=1, max_length=LONGEST_NAME)]
    messages: Annotated[list[Message], Field(min_length=1, max_length=1)]
    max_tokens: Annotated[
        _MaxTokens, Field(validation_alias=AliasChoices("max_completion_tokens", "max_tokens"))
    ] = None
    temperature: _Temperature = 1.0
    top_p: _TopP = 1.0
    seed: _Seed = None
    stream: bool = False
    n: Annotated[int, Field(ge=1, le=1)] = 1
    user: str | None = None


class Choice(BaseModel):
    """One completion."""

    index: int
    text: str
    finish_reason: Literal["stop", "length"] | None
    logprobs: None = None


class Usage(BaseModel):
    """Numbers of tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Completion(BaseModel):
    """OpenAI's answer."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage | None = None


class Said(BaseModel):
    """What a model says: all of it, or a piece of a stream."""

    role: Literal["assistant"] = "assistant"
    content: str


class ChatChoice(BaseModel):
    """One answer, as `message`, or as `delta` in a stream."""

    index: int = 0
    message: Said | None = None
    delta: Said | None = None
    finish_reason: Literal["stop", "length"] | None
    logprobs: None = None


class ChatCompletion(BaseModel):
    """OpenAI's answer in a chat, or a piece of it."""

    id: str
    object: Literal["chat.completion", "chat.completion.chunk"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage | None = None


class Model(BaseModel):
    """OpenAI's model: an adapter, or the base."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "adalink_jax"


class Models(BaseModel):
    """OpenAI's list of models."""

    object: Literal["list"] = "list"
    data: list[Model]


class AdapterState(BaseModel):
    """Where an adapter is."""

    name: str
    in_host_memory: bool = False
    on_device: bool = False
    pinned: bool = False
    routes: list[str] | None = None
    labels: list[str] | None = None


class AdapterList(BaseModel):
    """Some of the adapters, in the order of their names."""

    adapters: list[AdapterState]
    total: int
    next: int | None = None


class Problem(BaseModel):
    """An error (RFC 9457), with the request's id; OpenAI's clients read `error`."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    request_id: str
    error: dict[str, Any] | None = None

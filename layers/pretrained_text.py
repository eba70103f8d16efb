"""The text side of a published checkpoint: `tokenizer.json`, the chat template and `generation_config.json`.

A chat template is a program in Jinja that turns messages into one text. It comes with the weights, from
whoever made them, so it runs in Jinja's sandbox, with the settings and helpers that transformers gives it.
"""

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import tokenizers
from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers.decoders import DecodeStream

from layers.config import DeepSeekConfig
from layers.tensor_file import CheckpointError

# R1's format in short, for folders that hold no template: earlier thoughts are dropped, a new one is begun.
R1_TEMPLATE = """\
{{ bos_token }}
{%- for message in messages if message['role'] == 'system' %}{{ message['content'] }}{% endfor %}
{%- for message in messages %}
    {%- if message['role'] == 'user' %}{{ '<｜User｜>' + message['content'] }}
    {%- elif message['role'] == 'assistant' %}
        {{- '<｜Assistant｜>' + message['content'].split('</think>')[-1] + eos_token }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}"""


class PretrainedText:
    """Text to ids and back, as the files in `folder` say. Raises CheckpointError where they cannot be read.

    `settings` are the keyword arguments for `generate` that generation_config.json asks for.
    """

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        self.config = DeepSeekConfig.from_json(folder)
        self.tokenizer = load_tokenizer(folder, self.config)
        told = read_object(folder / "tokenizer_config.json")
        self.bos_token, self.eos_token = (text_of(told.get(f"{end}_token")) for end in ("bos", "eos"))
        self.add_bos = bool(told.get("add_bos_token", False))
        self.template = find_template(folder, told) or R1_TEMPLATE
        self.settings = generation_settings(folder, self.config)

    def encode(self, text: str) -> list[int]:
        """The ids of plain text, behind the begin-of-sentence token where the files ask for one."""
        ids = self.tokenizer.encode(text).ids
        begin = self.tokenizer.token_to_id(self.bos_token) if self.add_bos and self.bos_token else None
        return ids if begin is None or ids[:1] == [begin] else [begin, *ids]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens left out."""
        return self.tokenizer.decode([int(token) for token in ids])

    def stream(self) -> Callable[[int], str]:
        """A function that takes id after id and gives the text that each completes, "" amid a character."""
        decoder = DecodeStream(skip_special_tokens=True)
        return lambda token: decoder.step(self.tokenizer, int(token)) or ""

    def chat_text(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True) -> str:
        """The messages, {"role": "user", "content": "..."} each, as the template writes them.

        add_generation_prompt begins the assistant's turn, for R1 with <think>. Raises CheckpointError with
        what the template says against them.
        """
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = to_json
        environment.globals |= {"raise_exception": refuse, "strftime_now": now}
        try:
            return environment.from_string(self.template).render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
                bos_token=self.bos_token,
                eos_token=self.eos_token,
                tools=None,
                documents=None,
            )
        except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise CheckpointError(f"the chat template cannot write these messages: {error}") from error

    def chat(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True) -> list[int]:
        """The ids of `chat_text`, which writes all special tokens itself."""
        text = self.chat_text(messages, add_generation_prompt)
        return self.tokenizer.encode(text, add_special_tokens=False).ids


def load_tokenizer(folder: Path, config: DeepSeekConfig) -> tokenizers.Tokenizer:
    """The tokenizer of a checkpoint. Raises CheckpointError if missing, damaged, or of another network."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist: without it ids are numbers only")
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library has no class of its own
        raise CheckpointError(f"{path} is no tokenizer: {error}") from None
    tokenizer.no_truncation()  # a file may carry settings of the last batch that it was used for
    tokenizer.no_padding()
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
    if largest >= config.vocab_size:
        raise CheckpointError(
            f"{path} has ids up to {largest} but vocab_size is {config.vocab_size}: it is of another network"
        )
    return tokenizer


def generation_settings(folder: Path, config: DeepSeekConfig) -> dict[str, Any]:
    """temperature, top_p, stop_tokens and pad_token for `generate`; greedy unless do_sample is asked for."""
    path = folder / "generation_config.json"
    told = read_object(path)
    stops = told.get("eos_token_id", config.eos_token_id)
    stops = [] if stops is None else stops if isinstance(stops, list) else [stops]
    settings: dict[str, Any] = {"temperature": 0.0, "top_p": 1.0, "stop_tokens": stops}
    if told.get("do_sample", False):
        settings |= {"temperature": told.get("temperature", 1.0), "top_p": told.get("top_p", 1.0)}
    pad = told.get("pad_token_id", config.pad_token_id)
    if pad is not None:
        settings["pad_token"] = pad
    numbers = [settings["temperature"], settings["top_p"], *stops]
    if not all(isinstance(number, int | float) for number in numbers):
        raise CheckpointError(f"{path} has temperature, top_p and eos_token_id {numbers}: numbers are wanted")
    return settings


def find_template(folder: Path, told: Mapping[str, Any]) -> str | None:
    """The chat template: a file of its own, or in tokenizer_config.json, where several have names."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = told.get("chat_template")
    if isinstance(template, list):
        named = {entry["name"]: entry["template"] for entry in template}
        return named.get("default")
    return template


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object, empty where there is no file. Raises CheckpointError for anything else."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds a JSON {type(found).__name__} but should hold an object")
    return found


def text_of(token: Any) -> str:
    """A special token's text: files give it as it is, or as an object with its content."""
    return (token.get("content", "") if isinstance(token, dict) else token) or ""


def to_json(value: Any, indent: int | None = None) -> str:
    """Jinja's own `tojson` escapes for HTML; templates mean plain JSON."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def refuse(message: str) -> NoReturn:
    """How a template rejects messages."""
    raise TemplateError(message)


def now(form: str) -> str:
    """Today's date or time, for templates that mention it."""
    return datetime.datetime.now().strftime(form)

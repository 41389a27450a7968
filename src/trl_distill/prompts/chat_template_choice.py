"""Setting a model's chat template: its own, a built-in one, a Jinja file, or another model's.

A template is tried on a short conversation before anything is tokenized with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..config.user_files import read_small_text, user_path
from ..errors import TemplateError, UsageError
from ..models.loading import ModelSource, check_found, resolve
from .chat_template import ChatTemplate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OWN = ("tokenizer", "none")  # AutoTrain's words for the template that the model brings
BUILT_IN = {
    "chatml": (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "zephyr": (
        "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}{{ eos_token }}\n"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    ),
}
ACCEPTED = "give 'tokenizer' (the model's own), 'chatml', 'zephyr', a Jinja file, or a model that has one"


def set_chat_template(
    tokenizer: PreTrainedTokenizerBase,
    source: str | None,
    *,
    role: str = "chat_template",
    trust_remote_code: bool = False,
) -> None:
    """Set the requested chat template on a tokenizer.

    Args:
        tokenizer: The model's; it is changed.
        source: None, "tokenizer" or "none" for its own; "chatml" or "zephyr"; a Jinja file (`@` before it is
            accepted); a folder or Hub name of a model.
        role: The setting it was given in, for messages.
        trust_remote_code: Allow code that such a model brings.

    Raises:
        TemplateError: No such template, a file that is not Jinja, or a template that leaves out messages.
    """
    if source is None or source in OWN:
        return
    template = BUILT_IN.get(source, _from_file(source, role))
    if template is None:
        template = _from_model(source, role, trust_remote_code)
    before, tokenizer.chat_template = tokenizer.chat_template, template
    try:
        _check_renders(tokenizer, f"{role} {source!r}")
    except TemplateError:
        tokenizer.chat_template = before
        raise


def check_template_found(source: str | None, *, role: str) -> None:
    """Refuse the name of a chat template that is neither built in, nor a file, nor a model; it is not rendered.

    Raises:
        TemplateError: See `set_chat_template`.
    """
    if source is None or source in OWN or source in BUILT_IN or _from_file(source, role) is not None:
        return
    try:
        check_found(source, role=role)
    except UsageError as error:
        raise TemplateError(f"{role} {source!r} is not a template, a file or a model; {ACCEPTED}.") from error


def _from_file(source: str, role: str) -> str | None:
    path = user_path(source.removeprefix("@"), name=role, error=TemplateError)
    if not path.exists() or path.is_dir():
        return None
    try:
        return read_small_text(path)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise TemplateError(f"{role} {source!r} cannot be read: {reason}; give a Jinja file.") from None


def _from_model(source: str, role: str, trust_remote_code: bool) -> str:
    try:
        path = resolve(source, role=role)
        template = ChatTemplate(ModelSource(path, role, trust_remote_code=trust_remote_code).load_tokenizer()).source
    except UsageError as error:
        raise TemplateError(f"{role} {source!r} is not a template, a file or a model; {ACCEPTED}.") from error
    if template is None:
        raise TemplateError(f"{role} {source!r} is a model without a chat template; {ACCEPTED}.")
    return template


def _check_renders(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    turns = [{"role": "user", "content": "QUESTION"}, {"role": "assistant", "content": "COMPLETION"}]
    text = ChatTemplate(tokenizer, name).render(turns)
    for turn in turns:
        if turn["content"] not in text:
            raise TemplateError(
                f"{name} is not a chat template: it leaves out the messages of the {turn['role']}; write "
                "{{ message['content'] }} in a loop over messages."
            )

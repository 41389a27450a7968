"""The student as its own teacher: the same weights with the adapter switched off, and no second copy in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from ...errors import TeacherError
from ...models.adapters import base_of, is_peft_model
from ...models.loading import ModelSource
from . import fingerprint
from .teacher import LocalTeacher

if TYPE_CHECKING:
    from transformers import GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase

SELF = "self"
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # LoRA's ways to begin that change the weights under it


class SelfTeacher(LocalTeacher):
    """The model under an adapter, which training leaves as it is.

    Args:
        student: Returns the student; called when a completion or a score is first asked for. It may be the bare
            model, as long as there is no adapter yet.
        config: The student's configuration.
        tokenizer: Its tokenizer.
        generation_config: The student's, for the tokens it stops at.
        source: Where its weights under the adapter can be loaded from; None if in memory alone.
    """

    def __init__(
        self,
        student: Callable[[], Any],
        *,
        config: PretrainedConfig,
        tokenizer: PreTrainedTokenizerBase,
        generation_config: GenerationConfig | None = None,
        source: ModelSource | None = None,
    ) -> None:
        super().__init__(
            SELF,
            config=config,
            tokenizer=tokenizer,
            load=self._under_adapter,
            generation_config=generation_config,
            source=source,
        )
        self._student = student

    def take(self, student: Any) -> None:
        """Go on with the student as its trainer has wrapped it.

        Raises:
            TeacherError: It has no adapter to switch off, or see `check_untouched`.
        """
        if not is_peft_model(student):
            raise TeacherError(
                "teacher_model 'self' is the student with its adapter switched off, but the student has none; train a "
                "LoRA adapter (--peft), or give the model's own name for a teacher that is a copy."
            )
        check_untouched(student)
        self.__dict__.pop("model", None)
        self._student = lambda: student

    def _under_adapter(self) -> Any:
        """Return the student without PEFT's wrapper; a learnt prompt stays in there."""
        student = self._student()
        if type(self) is SelfTeacher and is_peft_model(student):
            check_untouched(student)
        return base_of(student)

    def precision(self) -> AbstractContextManager[Any]:
        """Return a context in which the weights, which are the student's, are read as the student reads them."""
        return nullcontext()

    @contextmanager
    def acting(self) -> Iterator[None]:
        """Switch the adapter off."""
        student = self._student()
        with student.disable_adapter() if is_peft_model(student) else nullcontext():
            yield

    def weights(self) -> Any:
        """Return a hash of the weights under the adapter."""
        return fingerprint.of_model(self.model, adapters=False)

    def prepare(self, wrap: Callable[[Any], Any]) -> None:
        """Nothing is wrapped: the student's trainer has done so."""
        self.prefix.forget()


def touches_base(student: Any) -> str | None:
    """Return the setting of a student's adapter that changes weights under it, with its value; None if none does.

    Args:
        student: With PEFT's wrapper.
    """
    for name in student.active_adapters:
        config = student.peft_config[name]
        bias, start = getattr(config, "bias", "none"), getattr(config, "init_lora_weights", True)
        if bias != "none":
            return f"bias {bias!r}"
        if isinstance(start, str) and start.startswith(CHANGES_BASE):
            return f"init_lora_weights {start!r}"
    return None


def check_untouched(student: Any) -> None:
    """Refuse a student whose weights under the adapter do not stay what they were.

    Raises:
        TeacherError: Naming the adapter's setting.
    """
    found = touches_base(student)
    if found is not None:
        raise TeacherError(
            f"teacher_model 'self' is the student with its adapter switched off, but the adapter has {found}, which "
            "changes weights of the model itself; leave that out of the adapter, or give the model's own name for a "
            "teacher that is a copy."
        )

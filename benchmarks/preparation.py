"""Rows to token ids: ours beside `datasets.map` with the same tokenizer and as many processes.

Both sides tokenize two prompts and a completion of each row. Ours also reads and checks the rows, renders the
templates, fits the rows into both models and counts what the pre-flight shows. Beside them stands what TRL's SFTTrainer
does with the same rows, which have one prompt there.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import random
import warnings
from typing import Any

from _measure import alternating, machine, median_ratio, print_json, table
from datasets import Dataset, disable_caching, disable_progress_bars
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from trl_distill.data.preparation import Recipe
from trl_distill.data.recipe import PromptSide
from trl_distill.data.rows import Columns
from trl_distill.embedded import embedded_path
from trl_distill.prompts.template import parse_template

TEACHER = (
    "You are a careful assistant. Read the task, think about it step by step, and answer in a sentence or two. Say so "
    "if you do not know.\n\nTask: {input}\n\nAnswer:"
)
STUDENT = "{input}\n"
FORMS = ("text", "chat")


def make_rows(count: int, *, chat: bool, seed: int = 0) -> Dataset:
    """Return rows of a prompt of 5 to 40 words and a completion of 5 to 60, as text or as conversations."""
    draw = random.Random(seed)
    words = [w for w in " ".join([__doc__ or "", TEACHER, argparse.__doc__ or "", random.__doc__ or ""]).split() if w]
    rows = []
    for _ in range(count):
        asked = " ".join(draw.choices(words, k=draw.randint(5, 40)))
        said = " " * (not chat) + " ".join(draw.choices(words, k=draw.randint(5, 60)))
        talk = [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
        rows.append({"messages": talk} if chat else {"prompt": asked, "completion": said})
    return Dataset.from_list(rows)


def ours(rows: Dataset, tokenizer: PreTrainedTokenizerBase, processes: int | None) -> Dataset:
    """Prepare rows as a run does."""
    side = functools.partial(PromptSide, tokenizer, limit=1024)
    recipe = Recipe(
        student=side(parse_template(STUDENT, name="student_prompt_template")),
        teacher=side(parse_template(TEACHER, name="teacher_prompt_template")),
        columns=Columns(),
        write=no_teacher,
        num_proc=processes,
    )
    return recipe.prepare(rows)[0]


def no_teacher(prompts: list[Any]) -> list[Any]:
    """Stand where a teacher would write; all rows have a completion."""
    raise AssertionError(prompts)


def plain_map(rows: Dataset, tokenizer: PreTrainedTokenizerBase, processes: int | None) -> Dataset:
    """Tokenize the same texts by one batched map."""
    chat = "messages" in rows.column_names
    tokenize = functools.partial(tokenize_batch, tokenizer=tokenizer, chat=chat)
    return rows.map(tokenize, batched=True, remove_columns=rows.column_names, num_proc=processes)


def tokenize_batch(batch: dict[str, list[Any]], *, tokenizer: PreTrainedTokenizerBase, chat: bool) -> dict[str, Any]:
    """Return both prompts' ids and the completion's."""
    if not chat:
        asked, said = batch["prompt"], batch["completion"]
        prompts = [[template.replace("{input}", text) for text in asked] for template in (STUDENT, TEACHER)]
    else:
        render = functools.partial(tokenizer.apply_chat_template, tokenize=False)
        talks = [
            [
                [{"role": "user", "content": template.replace("{input}", talk[0]["content"])}, talk[1]]
                for talk in batch["messages"]
            ]
            for template in (STUDENT, TEACHER)
        ]
        prompts = [[render(talk[:1], add_generation_prompt=True) for talk in side] for side in talks]
        said = [render(talk)[len(prompt) :] for talk, prompt in zip(talks[0], prompts[0], strict=True)]
    ids = [tokenizer(texts, add_special_tokens=False)["input_ids"] for texts in (*prompts, said)]
    completions = ids[2] if chat else [[*one, tokenizer.eos_token_id] for one in ids[2]]
    return {"student_prompt": ids[0], "teacher_prompt": ids[1], "completion": completions}


def check_alike(rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that both sides make the same token ids of rows.

    Raises:
        SystemExit: They do not.
    """
    for mine, theirs in zip(ours(rows, tokenizer, None), plain_map(rows, tokenizer, None), strict=True):
        for name, ids in theirs.items():
            if mine[name] != ids:
                raise SystemExit(f"row {mine['row']}, {name}: {mine[name]} is not {ids}")


def trls(rows: Dataset, tokenizer: PreTrainedTokenizerBase, processes: int | None) -> Dataset:
    """Prepare rows as TRL's SFTTrainer does, with one prompt."""
    from transformers import GPT2Config, GPT2LMHeadModel
    from trl import SFTConfig, SFTTrainer

    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_embd=8, n_layer=1, n_head=1))
    config = SFTConfig(output_dir="/tmp/none", report_to="none", use_cpu=True, bf16=False, dataset_num_proc=processes)
    return SFTTrainer(model, config, train_dataset=rows, processing_class=tokenizer).train_dataset


SIDES = {"datasets.map": plain_map, "TRL's SFTTrainer": trls, "ours": ours}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="0 is none beside this one")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokenizer", default=str(embedded_path()), help="folder or name of any other")
    parser.add_argument("--forms", nargs="+", default=list(FORMS), choices=FORMS)
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=list(SIDES))
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    disable_progress_bars()
    disable_caching()
    print(machine("datasets", "tokenizers", "transformers", "trl"))
    print(f"{options.rows:,} rows; medians of {options.rounds} alternating runs\n")
    tokenizer, found, figures = AutoTokenizer.from_pretrained(options.tokenizer), [], {}
    for form in options.forms:
        rows = make_rows(options.rows, chat=form == "chat")
        check_alike(rows.select(range(min(len(rows), 200))), tokenizer)
        for count in options.processes:
            sides = {name: functools.partial(SIDES[name], rows, tokenizer, count or None) for name in options.sides}
            with contextlib.redirect_stderr(io.StringIO()):
                seconds = alternating(sides, rounds=options.rounds, warmup=0)
            ratios = {name: median_ratio(seconds["ours"], seconds[name]) for name in options.sides}
            middle = {name: sorted(times)[len(times) // 2] for name, times in seconds.items()}
            found.append([form, str(count), *(f"{middle[s]:.1f}" for s in options.sides)])
            found[-1] += [f"{ratios[s]:.2f}" for s in options.sides if s != "ours"]
            figures[f"ratio_{form}_{count}"] = ratios["datasets.map"]
    head = ["rows", "processes", *(f"{s} s" for s in options.sides)]
    print(table(head + [f"ours/{s}" for s in options.sides if s != "ours"], found))
    print_json(figures)


if __name__ == "__main__":
    main()

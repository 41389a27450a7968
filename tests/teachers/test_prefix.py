"""A prefix that is read once changes no score and no completion, whatever the architecture."""

from __future__ import annotations

import pytest
import torch
from conftest import make_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

from trl_distill.config.devices import accelerator
from trl_distill.data.collator import DistillationCollator, prompts_of
from trl_distill.losses import LMHead
from trl_distill.models.generation import GenerationSettings
from trl_distill.teachers.loading import load_teacher

pytestmark = pytest.mark.usefixtures("device")

SIZE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
GROUPED = {**SIZE, "num_key_value_heads": 2, "max_position_embeddings": 256}
SLIDING = ["sliding_attention"] * 3
FAMILIES = {
    "llama": GROUPED,
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 256},
    "qwen2": GROUPED,
    "qwen3": {**GROUPED, "head_dim": 8},
    # a window shorter than the prefix, one that ends in it, and one longer than everything
    "gemma3_text 8": {**GROUPED, "head_dim": 8, "sliding_window": 8, "layer_types": [*SLIDING[:2], "full_attention"]},
    "gemma3_text 30": {**GROUPED, "head_dim": 8, "sliding_window": 30, "layer_types": SLIDING},
    "mistral 200": {**GROUPED, "sliding_window": 200},
}  # fmt: skip
OTHERS = {  # a state that is not a list of keys and values
    "mamba": {"hidden_size": 32, "state_size": 4, "num_hidden_layers": 2},
    "falcon_h1": {**GROUPED, "mamba_d_ssm": 32, "mamba_n_heads": 2, "mamba_d_head": 16},
}
PREFIX = list(range(30, 30 + 40))
GREEDY = GenerationSettings(max_new_tokens=6)


def make(family):
    """Return two teachers of the same random model, the second of which reuses nothing."""
    tokenizer = make_tokenizer()
    kind = family.split()[0]
    config = AutoConfig.for_model(
        kind, vocab_size=len(tokenizer), initializer_range=0.2, pad_token_id=0, bos_token_id=None, eos_token_id=1,
        **{**FAMILIES, **OTHERS}[family],
    )  # fmt: skip
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config).eval()
    teachers = [load_teacher(model, tokenizer=tokenizer, device=accelerator()) for _ in range(2)]
    teachers[1].prefix.off = "the test compares"
    return teachers


def batch(*rows):
    """Return a batch of (what follows the prefix, completion)."""
    return DistillationCollator(pad_token_id=0)(
        [{"student_prompt": [9], "teacher_prompt": PREFIX + rest, "completion": said} for rest, said in rows]
    )


def log_probs(teacher, given):
    targets = teacher.score(given)
    head = targets.head
    return LMHead(head.weight, head.bias, softcap=head.softcap, scale=head.scale).logits(targets.hidden).log_softmax(-1)


BATCHES = [
    batch(([80, 81, 82], [90, 91, 92]), ([83], [93])),
    batch(([84, 85], [94, 95, 96, 97])),
    batch(([86], [98]), ([87, 88, 89, 99, 100], [101, 102]), ([103, 104], [105])),
]


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_with_a_prefix_cache_are_those_of_whole_prompts(family):
    reusing, plain = make(family)
    for given in BATCHES:
        torch.testing.assert_close(log_probs(reusing, given), log_probs(plain, given), rtol=0, atol=1e-4)
    assert reusing.prefix.off is None
    assert reusing.prefix.ids.tolist() == PREFIX


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("lengths", [(3, 3, 3), (1, 4, 2), (1, 60, 25)], ids=["alike", "unlike", "very unlike"])
def test_completions_with_a_prefix_cache_are_those_of_whole_prompts(family, lengths):
    reusing, plain = make(family)
    prompts = [PREFIX + [80 + (5 * i + k) % 90 for k in range(n)] for i, n in enumerate(lengths)]
    for some in (prompts, prompts[:1], prompts[1:]):
        assert reusing.generate(some, GREEDY) == plain.generate(some, GREEDY)
    assert len(reusing.prefix.ids) == len(PREFIX)


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_of_any_length_are_read_after_the_prefix(family):
    reusing, _ = make(family)
    read = []
    reusing.model.get_input_embeddings().register_forward_hook(lambda module, args, out: read.append(out.shape[:2]))
    longest, tokens = len(PREFIX) + 7, 3
    for rest in ([7, 1, 2], [3, 7]):  # the second batch finds the prefix read
        prompts = [PREFIX + list(range(80, 80 + n)) for n in rest]
        written = reusing.generate(prompts, GenerationSettings(max_new_tokens=tokens))
        assert max(len(completion.ids) for completion in written) == tokens
    behind = [(rows, width) for rows in (3, 2) for width in (longest - len(PREFIX), *[1] * (tokens - 1))]
    assert read == [(1, len(PREFIX)), *behind]


@pytest.mark.parametrize("family", OTHERS)
def test_a_model_with_another_state_reads_whole_prompts_and_says_so_once(family, caplog):
    reusing, plain = make(family)
    for given in BATCHES:
        torch.testing.assert_close(log_probs(reusing, given), log_probs(plain, given), rtol=0, atol=1e-4)
    assert reusing.generate([[*PREFIX, 80]], GREEDY) == plain.generate([[*PREFIX, 80]], GREEDY)
    said = [record for record in caplog.records if "reads its whole prompt" in record.message]
    assert len(said) == 1


def test_what_a_model_reads_of_a_later_batch_is_what_follows_the_prefix(monkeypatch):
    reusing, _ = make("llama")
    reusing.check_logits()  # which reads a row of its own
    widths = []
    embed = reusing.model.get_input_embeddings()
    embed.register_forward_hook(lambda module, args, out: widths.append(tuple(out.shape[:2])))
    for given in BATCHES:
        reusing.score(given)
    # the prefix is read with the first batch, alone and once
    assert widths == [(1, 40), (2, 6), (1, 6), (3, 7)]


def test_a_prefix_shrinks_to_what_all_have_and_another_kind_of_row_leaves_it():
    reusing, plain = make("llama")
    given = [batch(([80, 81, 82], [90])), batch(([80, 81, 83], [91])), batch(([84], [92]))]
    found = []
    for one in given:
        torch.testing.assert_close(log_probs(reusing, one), log_probs(plain, one), rtol=0, atol=1e-4)
        found.append(len(reusing.prefix.ids))
    assert found == [42, 42, 40]
    other = DistillationCollator(pad_token_id=0)([{"student_prompt": [9], "teacher_prompt": [7, 8], "completion": [5]}])
    torch.testing.assert_close(log_probs(reusing, other), log_probs(plain, other), rtol=0, atol=1e-4)
    assert reusing.prefix.ids.tolist() == PREFIX


def test_a_dataset_with_another_prefix_gets_its_own_before_long():
    reusing, _ = make("llama")
    reusing.score(BATCHES[0])
    other = {"student_prompt": [9], "teacher_prompt": list(range(150, 190)), "completion": [90]}
    for _ in range(4):
        reusing.score(DistillationCollator(pad_token_id=0)([other, {**other, "completion": [91, 92]}]))
    assert reusing.prefix.ids[0] == 150


def test_a_new_run_forgets_the_prefix_of_the_last():
    reusing, _ = make("llama")
    reusing.score(BATCHES[0])
    reusing.prepare(lambda model: model)
    assert len(reusing.prefix.ids) == 0


def test_a_prefix_fixed_before_training_makes_scores_independent_of_order():
    given = [batch(([80, 81, 82], [90])), batch(([80, 81, 83], [91])), batch(([84], [92]), ([80, 81], [93]))]
    prompts = [row for one in given for row in prompts_of(one)]
    scores, widths = [], []
    for order in ([0, 1, 2], [2, 1, 0], [1]):
        reusing, _ = make("llama")
        reusing.check_logits()
        embed = reusing.model.get_input_embeddings()
        embed.register_forward_hook(lambda module, args, out: widths.append(out.shape[1]))
        reusing.expect_prompts(prompts)
        found = {i: reusing.score(given[i]).hidden for i in order}
        assert reusing.prefix.ids.tolist() == PREFIX
        scores.append(found)
    for other in scores[1:]:
        assert all(torch.equal(hidden, scores[0][i]) for i, hidden in other.items())
    assert widths == [40, 4, 4, 3, 40, 3, 4, 4, 40, 4]


def test_a_prefix_fixed_before_training_is_that_of_most_prompts():
    reusing, plain = make("llama")
    reusing.expect_prompts([[*PREFIX, 80, 81], [*PREFIX, 82], PREFIX, [7, 8, 9], list(range(60, 110))])
    rows = batch(([80], [90])), batch(([], [91]))
    other = DistillationCollator(pad_token_id=0)([{"student_prompt": [9], "teacher_prompt": [7, 8], "completion": [5]}])
    for given in (*rows, other, rows[0]):
        torch.testing.assert_close(log_probs(reusing, given), log_probs(plain, given), rtol=0, atol=1e-4)
    assert reusing.prefix.ids.tolist() == PREFIX[:-1]  # the last token of the shortest has to be computed


@pytest.mark.parametrize("prompts", [[], [[1, 2]], [PREFIX, list(range(60, 110))], [[*PREFIX[:8], 80], PREFIX[:8]]])
def test_prompts_with_little_in_common_are_read_whole(prompts):
    reusing, _ = make("llama")
    reusing.expect_prompts(prompts)
    reusing.score(batch(([80], [90])))
    assert len(reusing.prefix.ids) == 0

"""What every test shares: no network, quiet libraries, and tiny models with random weights.

Models are made once a session by `make_model`, offline, with a tokenizer that splits "a b c" into three tokens.
"""

from __future__ import annotations

import gc
import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest

# set before torch and transformers are imported; child processes inherit it
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# for tiny models more threads only wait for each other, and sums are not the same to the bit
os.environ["OMP_NUM_THREADS"] = "1"
# a test runs on the CPU unless it asks for `device`; accelerate and the project read this
os.environ["ACCELERATE_USE_CPU"] = "1"

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# of all files these take longest: begun first, so that no worker is left with one of them at the end
LONGEST = (
    "trainer/test_distributed.py", "faults/test_kills.py", "test_examples.py", "losses/test_kernels.py",
    "runs/test_library_output.py", "trainer/test_trainer_features.py", "runs/test_end_of_process.py",
    "test_benchmarks.py",
)  # fmt: skip
KEY = "k3y-of-the-tests-0123456789"  # of no known form, so that nothing finds it by its looks
SPECIAL = ["<|pad|>", "<|end|>", "<|im_start|>", "<|im_end|>"]


def make_tokenizer(*, chat: bool = False):
    """Return a byte-level tokenizer that loses no text; the letters a to z are one token each, with a space too."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", letter) for letter in "abcdefghijklmnopqrstuvwxyz"]
    tokens = [*SPECIAL, *alphabet, *("".join(pair) for pair in merges)]
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=SPECIAL[0], eos_token=SPECIAL[1], extra_special_tokens=SPECIAL[2:]
    )
    if chat:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def make_model(folder: Path, *, hidden: int = 32, layers: int = 2, extra_rows: int = 0, chat: bool = False) -> Path:
    """Save a random Llama and its tokenizer to a folder and return it.

    Args:
        folder: Where to; made when missing.
        hidden: Width; also the seed of the weights, so that two widths are two models.
        layers: Decoder layers.
        extra_rows: Vocabulary rows beyond the tokenizer's, as padded embeddings have.
        chat: Whether the tokenizer has a chat template.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = make_tokenizer(chat=chat)
    config = LlamaConfig(
        vocab_size=len(tokenizer) + extra_rows,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.1,  # large enough for distributions that differ from the uniform one
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(hidden)
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_model_that_writes(folder: Path, token: int, *, chat: bool = False) -> Path:
    """Save a model whose likeliest next token is always `token`, with the other weights out of the way."""
    import torch
    from transformers import AutoModelForCausalLM

    make_model(folder, chat=chat)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(float("embed" in name or "norm" in name))
        model.lm_head.weight[token] = 1
    model.save_pretrained(folder)
    return folder


def pytest_configure(config):
    """Have Ctrl-C end tests, and remove at the end the temporary files and cached data that tests' processes leave."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell has it in a job in the background; tests send it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(config, "workerinput"):
        return  # a worker has these places from the process that started it
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())  # pytest's own folders stay where they are
    place = tempfile.mkdtemp(prefix="trl-distill-tests-")
    os.environ["TMPDIR"], os.environ["HF_DATASETS_CACHE"] = place, str(Path(place, "datasets"))
    tempfile.tempdir = None  # it remembers TMPDIR
    config.add_cleanup(lambda: shutil.rmtree(place, ignore_errors=True))


def pytest_collection_modifyitems(items):
    """Have the longest files begin."""
    places = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(LONGEST)))


def pytest_collection_finish():
    """Have no garbage collection look at what the libraries leave, half a second each time that a run trains."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def device(request, monkeypatch):
    """The device at hand, for a test that runs there: a GPU if there is one; not in a test that is marked `cpu`."""
    import torch
    from accelerate.state import AcceleratorState

    from trl_distill.config.devices import accelerator

    if request.node.get_closest_marker("cpu") is None:
        monkeypatch.delenv("ACCELERATE_USE_CPU")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # convolutions of float32 are rounded by default
    yield accelerator() or torch.device("cpu")
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory) -> Path:
    """A student: two layers of width 32, no chat template."""
    return make_model(tmp_path_factory.mktemp("models") / "student")


@pytest.fixture(scope="session")
def tiny_teacher_dir(tmp_path_factory) -> Path:
    """A teacher of the same tokenizer, wider, with 64 more rows in its vocabulary than tokens."""
    return make_model(tmp_path_factory.mktemp("models") / "teacher", hidden=48, extra_rows=64)


@pytest.fixture(scope="session")
def overflowing_teacher(tiny_model_dir, tiny_teacher_dir, tmp_path_factory):
    """The folder of a teacher that overflows float16 on some rows of `small_runs.PAIRS`, and the numbers of those."""
    from overflowing import make_overflowing
    from small_runs import make

    folder = tmp_path_factory.mktemp("overflowing")
    rows = make(tiny_model_dir, tiny_teacher_dir, folder).train_dataset
    sequences = [[*row["teacher_prompt"], *row["completion"]] for row in rows]
    saved, places = make_overflowing(folder / "model", sequences, [len(row["teacher_prompt"]) for row in rows])
    assert 1 < len(places) < len(rows)
    return saved, [place + 1 for place in places]


@pytest.fixture(scope="session")
def wide_dir(tmp_path_factory) -> Path:
    """A student wide enough for the blocks that bitsandbytes quantizes."""
    return make_model(tmp_path_factory.mktemp("models") / "wide", hidden=64)


@pytest.fixture(scope="session")
def running_server(tmp_path_factory):
    """A process that serves the embedded model over the OpenAI protocol."""
    from teachers.server import Served

    server = Served(tmp_path_factory.mktemp("server"))
    yield server
    server.close()


@pytest.fixture
def server(running_server, monkeypatch):
    """The server with no fault asked for, and in the environment a key and the server's address, so that it is sent."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", running_server.url)
    running_server.revive()
    running_server.fail()
    return running_server


@pytest.fixture(scope="session")
def chat_model_dir(tmp_path_factory) -> Path:
    """The student with a chat template."""
    return make_model(tmp_path_factory.mktemp("models") / "chat", chat=True)


@pytest.fixture(scope="session")
def student_dir(tmp_path_factory) -> Path:
    """A small student of the embedded model's tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from trl_distill.embedded import embedded_path

    folder = tmp_path_factory.mktemp("models") / "embedded-student"
    tokenizer = AutoTokenizer.from_pretrained(embedded_path())
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder

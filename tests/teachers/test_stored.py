"""A store of targets: what is in it, what is refused, what a kill and a flipped byte cost; and the teacher it is."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch

from trl_distill.data.collator import DistillationCollator
from trl_distill.errors import TeacherError
from trl_distill.losses.lm_head import LMHead
from trl_distill.losses.settings import LossSettings
from trl_distill.models.generation import GenerationSettings
from trl_distill.teachers.base import Teacher
from trl_distill.teachers.loading import load_teacher
from trl_distill.teachers.target_store import writer as teaching
from trl_distill.teachers.target_store.folder import TargetFolder, TargetRow, sequence_key
from trl_distill.teachers.target_store.formats.hidden import load_head, save_head
from trl_distill.teachers.target_store.manifest_shape import NEEDED, OPTIONAL
from trl_distill.teachers.target_store.reader import StoredTeacher
from trl_distill.teachers.target_store.writer import TargetSettings, write_targets

ROWS = [
    {"row": 0, "student_prompt": [5], "teacher_prompt": [5, 6, 7, 8], "completion": [10, 11, 12]},
    {"row": 1, "student_prompt": [6], "teacher_prompt": [9], "completion": [13]},
    {"row": 2, "student_prompt": [7], "teacher_prompt": [9, 5], "completion": [14, 15]},
    {"row": 3, "student_prompt": [8], "teacher_prompt": [9], "completion": [13]},
    {"row": 4, "student_prompt": [8], "teacher_prompt": [6], "completion": [16, 17, 18, 19]},
]
SETTINGS = TargetSettings(
    k=12, temperatures=(1.0, 3.0), made_with={"teacher_prompt_template": "t", "generation": {}}, batch_size=2
)
KINDS = ("topk", "sample", "hidden")
COLLATE = DistillationCollator(pad_token_id=0)


@pytest.fixture
def teacher(tiny_teacher_dir):
    teacher = load_teacher(str(tiny_teacher_dir))
    teacher.restrict_vocabulary(280)
    return teacher


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(teaching, "ROWS", 2)  # several shards of few sequences
    return TargetFolder(tmp_path / "store")


def write(teacher, folder, rows=ROWS, settings=SETTINGS):
    return write_targets(teacher, rows, folder, settings, progress=False)


def of_kind(kind, **changes):
    return TargetSettings(**{**vars(SETTINGS), "kind": kind, **changes})


def contents(folder):
    return {str(p.relative_to(folder.path)): p.read_bytes() for p in folder.path.rglob("*") if p.is_file()}


def full_logits(teacher, rows=ROWS):
    targets = teacher.score(COLLATE(rows))
    return LMHead(targets.head.weight, targets.head.bias).logits(targets.hidden)[:, : targets.vocabulary].double()


@pytest.mark.parametrize("kind", KINDS)
def test_a_store_is_a_teacher(kind, teacher, folder):
    write(teacher, folder, settings=of_kind(kind))
    stored = StoredTeacher(folder.path)
    assert isinstance(stored, Teacher)
    for name in ("name", "vocabulary", "vocabulary_rows", "length_limit", "stop_ids"):
        assert getattr(stored, name) == getattr(teacher, name), name
    assert stored.identity() == json.loads(json.dumps(teacher.identity()))
    assert stored.tokenizer.get_vocab() == teacher.tokenizer.get_vocab()


def test_a_topk_store_holds_the_likeliest_tokens_and_the_exact_mass_of_the_tail(teacher, folder):
    write(teacher, folder)
    found = StoredTeacher(folder.path).score(COLLATE(ROWS))
    log_p = full_logits(teacher).log_softmax(-1)
    expected = log_p.topk(12)
    assert torch.equal(found.token_ids, expected.indices)
    assert (found.log_probs - expected.values).abs().max() <= 2**-11 * expected.values.abs().max()
    for temperature, normalizer in found.log_normalizers.items():
        p = (log_p / temperature).softmax(-1)
        tail = 1 - p.gather(1, found.token_ids).sum(1)
        stored = (found.log_probs.double() / temperature - normalizer[:, None].double()).exp().sum(1)
        assert (1 - stored - tail).abs().max() <= 1e-6


def test_equal_sequences_are_stored_once(teacher, folder):
    assert write(teacher, folder) == 2
    assert folder.manifest()["sequences"]["count"] == 4
    assert [shard["tokens"] for shard in folder.manifest()["shards"]] == [4, 6]


def test_a_batch_of_other_rows_in_another_order_is_found(teacher, folder):
    write(teacher, folder)
    stored = StoredTeacher(folder.path)
    together = stored.score(COLLATE(ROWS))
    alone = [stored.score(COLLATE([row])).token_ids for row in reversed(ROWS)]
    assert torch.equal(torch.cat(alone[::-1]), together.token_ids)


def test_under_an_empty_prompt_the_first_token_has_no_target(teacher, folder):
    rows = [{"row": 0, "student_prompt": [], "teacher_prompt": [], "completion": [10, 11, 12]}, ROWS[0]]
    write(teacher, folder, rows)
    stored = StoredTeacher(folder.path)
    assert stored.score(COLLATE(rows[:1])).token_ids.shape == (2, 12)
    student_alone = {**ROWS[0], "student_prompt": []}
    assert torch.equal(stored.score(COLLATE([student_alone])).token_ids, stored.score(COLLATE(ROWS[:1])).token_ids[1:])


def test_a_row_that_is_not_in_the_store_is_named(teacher, folder):
    write(teacher, folder)
    stored = StoredTeacher(folder.path)
    other = {**ROWS[0], "row": 7, "completion": [10, 11]}
    with pytest.raises(TeacherError, match="no targets for train, row 7"):
        stored.check_rows([ROWS[0], other], name="train")
    with pytest.raises(TeacherError, match="no targets for the sequence"):
        stored.score(COLLATE([other]))
    with pytest.raises(TeacherError, match="no completion for a prompt"):
        stored.generate([[5, 6]], GenerationSettings())


class Killed(BaseException):
    """Stands for a kill."""


def dying_after(teacher, batches, monkeypatch):
    """Have a teacher die when it is asked for more than `batches`; returns those it was asked for."""
    score, asked = teacher.score, []

    def dying(batch):
        if len(asked) == batches:
            raise Killed
        asked.append(batch)
        return score(batch)

    monkeypatch.setattr(teacher, "score", dying)
    return asked


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batches", [0, 1, 2])
def test_what_was_stopped_ends_as_the_uninterrupted_store_and_scores_no_batch_twice(
    batches, kind, teacher, folder, tmp_path, monkeypatch
):
    settings, whole = of_kind(kind, batch_size=1), TargetFolder(tmp_path / "whole")
    write(teacher, whole, settings=settings)
    with monkeypatch.context() as patch:
        dying_after(teacher, batches, patch)
        with pytest.raises(Killed):
            write(teacher, folder, settings=settings)
    assert not folder.complete
    with pytest.raises(TeacherError, match="is unfinished"):
        StoredTeacher(folder.path)
    with monkeypatch.context() as patch:
        asked = dying_after(teacher, 99, patch)
        write(teacher, folder, settings=settings)
    assert len(asked) == 4 - batches
    assert contents(folder) == contents(whole)
    assert write(teacher, folder, settings=settings) == 0
    assert contents(folder) == contents(whole)


@pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
def test_a_damaged_batch_of_a_shard_that_is_not_there_yet_is_scored_again(
    place, teacher, folder, tmp_path, monkeypatch
):
    settings, whole = of_kind("topk", batch_size=1), TargetFolder(tmp_path / "whole")
    write(teacher, whole, settings=settings)
    with monkeypatch.context() as patch:
        dying_after(teacher, 1, patch)
        with pytest.raises(Killed):
            write(teacher, folder, settings=settings)
    (part,) = (folder.path / ".parts").iterdir()
    damaged = bytearray(part.read_bytes())
    damaged[int(len(damaged) * place)] ^= 1
    part.write_bytes(damaged)
    write(teacher, folder, settings=settings)
    assert contents(folder) == contents(whole)


def flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(
    "name", ["shard-00001.parquet", "manifest.json", "tokenizer/tokenizer.json", "head.safetensors"]
)
@pytest.mark.parametrize("damage", [flip, lambda content: content[:-7], None], ids=["flipped", "cut", "missing"])
def test_damaged_files_are_named_and_repaired(name, damage, teacher, folder):
    settings = of_kind("hidden")
    write(teacher, folder, settings=settings)
    before, path = contents(folder), folder.path / name
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(TeacherError, match=f"{name}"):
        StoredTeacher(folder.path)
    folder.discard_damaged()
    assert write(teacher, folder, settings=settings) == {"m": 2, "s": 1, "t": 0, "h": 0}[name[0]]
    assert contents(folder) == before


@pytest.mark.parametrize("name", ["shard-00000.parquet", "tokenizer/tokenizer.json"])
def test_a_folder_in_the_place_of_a_file_is_named_and_not_deleted(name, teacher, folder):
    write(teacher, folder)
    (folder.path / name).unlink()
    (folder.path / name).mkdir()
    (folder.path / name / "notes.txt").write_text("of somebody")
    said = f"{name} is a folder in the place of a file; remove it, and"
    with pytest.raises(TeacherError, match=said):
        StoredTeacher(folder.path)
    (folder.path / "shard-00001.parquet").write_bytes(b"damaged")
    before = contents(folder)
    with pytest.raises(TeacherError, match=said):
        folder.discard_damaged()
    assert contents(folder) == before


@pytest.mark.parametrize("name", ["shard-00000.parquet", "manifest.json"])
def test_a_pipe_in_the_place_of_a_file_is_not_read(name, teacher, folder):
    write(teacher, folder)
    (folder.path / name).unlink()
    os.mkfifo(folder.path / name)
    with pytest.raises(TeacherError, match=name):
        StoredTeacher(folder.path)


def test_every_flipped_bit_of_a_shard_is_found(teacher, folder):
    write(teacher, folder)
    path = folder.path / "shard-00000.parquet"
    whole = path.read_bytes()
    for place in range(0, len(whole), 97):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        with pytest.raises(TeacherError, match=r"shard-00000\.parquet is damaged: it differs from its checksum"):
            StoredTeacher(folder.path)


def test_a_store_is_resumed_with_the_same_settings_only(teacher, folder):
    write(teacher, folder)
    for change, sentence in (
        ({"kind": "sample"}, "another teacher_store_kind: 'topk', and this run has 'sample'"),
        ({"k": 9}, "another teacher_top_k: 12, and this run has 9"),
        ({"temperatures": (1.0,)}, "another teacher_temperatures"),
        ({"made_with": {"teacher_prompt_template": "u"}}, "another teacher_prompt_template: 't', and this run has 'u'"),
        ({"made_with": {"generation": {"seed": 3}}}, "another seed: None, and this run has 3"),
    ):
        with pytest.raises(TeacherError, match=sentence):
            write(teacher, folder, settings=TargetSettings(**{**vars(SETTINGS), **change}))
    with pytest.raises(TeacherError, match=r"made from other rows \(4 different sequences, and this run has 2\)"):
        write(teacher, folder, ROWS[:2])
    teacher.restrict_vocabulary(270)
    with pytest.raises(TeacherError, match="another teacher's rows"):
        write(teacher, folder)


def test_long_settings_are_shown_from_where_they_differ(teacher, folder):
    first, other = ({**vars(SETTINGS), "made_with": {"teacher_system": "x" * 200 + end}} for end in ("yes", "no"))
    write(teacher, folder, settings=TargetSettings(**first))
    said = r"another teacher_system: \.\.\.x{30}yes', and this run has \.\.\.x{30}no';"
    with pytest.raises(TeacherError, match=said):
        write(teacher, folder, settings=TargetSettings(**other))


def test_a_folder_of_something_else_is_left_alone(teacher, folder):
    folder.path.mkdir()
    (folder.path / "thesis.txt").write_text("mine")
    with pytest.raises(TeacherError, match=r"holds 'thesis\.txt'"):
        write(teacher, folder)
    with pytest.raises(TeacherError, match=r"no manifest\.json"):
        StoredTeacher(folder.path)


def test_a_student_with_fewer_tokens_is_refused(teacher, folder):
    write(teacher, folder)
    stored = StoredTeacher(folder.path)
    stored.restrict_vocabulary(300)
    assert stored.vocabulary == 280
    with pytest.raises(TeacherError, match="has targets over 280 tokens"):
        stored.restrict_vocabulary(270)


def test_top_k_beyond_the_vocabulary_is_the_whole_vocabulary(teacher, folder):
    write(teacher, folder, settings=TargetSettings(**{**vars(SETTINGS), "k": 10_000}))
    assert StoredTeacher(folder.path).score(COLLATE(ROWS)).token_ids.shape == (11, 280)


@pytest.fixture(scope="module")
def manifest(tiny_teacher_dir, tmp_path_factory):
    """A store and what its manifest says."""
    folder = TargetFolder(tmp_path_factory.mktemp("stores") / "store")
    write(load_teacher(str(tiny_teacher_dir)), folder)
    return folder, folder.manifest()


WRONG = [None, [], {}, "x", True, -1, 1.5, 10**30, [[1]], [None], {"a": 1}]


@pytest.mark.parametrize("name", [*NEEDED, "stop_ids", "sequences"])
def test_a_manifest_of_another_shape_is_refused(name, manifest):
    folder, right = manifest
    for value in WRONG:
        if (NEEDED | OPTIONAL)[name](value):
            continue
        folder.write_manifest({**right, name: value})
        with pytest.raises(TeacherError) as refused:
            StoredTeacher(folder.path)
        assert len(str(refused.value)) < 500
        assert "has format" in str(refused.value) or f"manifest.json has no {name!r} of the form" in str(refused.value)
    assert sum(not (NEEDED | OPTIONAL)[name](value) for value in WRONG) >= 7
    if name in NEEDED:
        folder.write_manifest({key: value for key, value in right.items() if key != name})
        with pytest.raises(TeacherError, match=r"manifest\.json"):
            StoredTeacher(folder.path)


@pytest.mark.parametrize("text", ["", "[]", "3", "null", '"x"', "{}", "[" * 100_000, '{"format": 2}', "\xff"])
def test_a_manifest_that_is_none_is_refused(text, manifest):
    folder, _ = manifest
    (folder.path / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(TeacherError, match=r"manifest.json is damaged; make it again with .* --repair\."):
        StoredTeacher(folder.path)


@pytest.mark.parametrize(("vocabulary", "kind"), [(2**16, "uint16"), (2**16 + 1, "uint32")])
def test_token_ids_are_stored_in_the_smallest_type(vocabulary, kind, folder):
    import pyarrow.parquet as pq

    arrays = {
        "token_ids": np.array([[vocabulary - 1, 3], [2, 1], [0, 4]]),
        "counts": np.array([[1, 2], [3, 4], [5, 6]], np.uint8),
        "log_probs": np.linspace(-9, 0, 6, dtype=np.float16).reshape(3, 2),
        "log_normalizers": np.ones((3, 1), np.float32),
    }
    row = TargetRow(sequence_key([1], [2, 3, 4]), np.array([2, 3, vocabulary - 1]), arrays)
    folder.write_manifest({"complete": False})
    name = "shard-00000.parquet"
    folder.write_shard(name, [row, row], vocabulary=vocabulary)
    assert str(pq.read_schema(folder.path / name).field("token_ids").type.value_type) == kind
    found = folder.rows({"shards": [{"name": name}]}).get(row.key)
    assert np.array_equal(found.completion, row.completion)
    assert found.arrays.keys() == arrays.keys()
    for column, array in arrays.items():
        assert np.array_equal(found.arrays[column], array), column


# -- the kind hidden


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_hidden_states_and_head_are_the_teachers_to_the_bit(dtype, tiny_teacher_dir, folder):
    teacher = load_teacher(str(tiny_teacher_dir), dtype=dtype)
    teacher.restrict_vocabulary(280)
    write(teacher, folder, settings=of_kind("hidden", batch_size=5))
    rows = [ROWS[i] for i in (0, 1, 2, 4)]  # one batch, as it was stored
    expected, found = teacher.score(COLLATE(rows)), StoredTeacher(folder.path).score(COLLATE(rows))
    assert found.hidden.dtype == expected.hidden.dtype
    assert torch.equal(found.hidden, expected.hidden)
    assert found.hidden.stride() == expected.hidden.stride()  # by which products are rounded
    assert torch.equal(found.head.weight, expected.head.weight[:280])
    assert found.vocabulary == 280


def test_bias_scale_and_softcap_of_a_head_are_stored(tmp_path):
    head = LMHead(torch.randn(7, 3), torch.randn(7), softcap=30.0, scale=0.5)
    save_head(head, tmp_path / "head.safetensors", rows=5)
    found = load_head(tmp_path / "head.safetensors", torch.device("cpu"))
    assert (found.softcap, found.scale) == (30.0, 0.5)
    assert torch.equal(found.weight, head.weight[:5])
    assert torch.equal(found.bias, head.bias[:5])


def test_hidden_targets_take_every_temperature_and_divergence_and_the_others_what_they_were_written_for(
    teacher, folder, tmp_path
):
    write(teacher, folder, settings=of_kind("hidden"))
    StoredTeacher(folder.path).check_loss(LossSettings(0.7, 7.5, "jsd"))
    for kind in ("topk", "sample"):
        other = TargetFolder(tmp_path / kind)
        write(teacher, other, settings=of_kind(kind))
        stored = StoredTeacher(other.path)
        stored.check_loss(LossSettings(0.7, 3.0))
        with pytest.raises(TeacherError, match=r"written for the temperatures 1, 3, and distill_temperature is 7\.5"):
            stored.check_loss(LossSettings(0.7, 7.5))
        with pytest.raises(TeacherError, match=f"distill_divergence 'jsd' .* of the kind {kind}"):
            stored.check_loss(LossSettings(0.7, 3.0, "jsd"))


# -- the kind sample


@pytest.mark.parametrize("draws", [12, 300])
def test_sampled_tokens_start_with_the_likeliest_and_their_counts_add_up(draws, teacher, folder):
    write(teacher, folder, settings=of_kind("sample", k=draws))
    found = StoredTeacher(folder.path).score(COLLATE(ROWS))
    for temperature, drawn in found.samples.items():
        log_p = (full_logits(teacher) / temperature).log_softmax(-1)
        assert torch.equal(drawn.token_ids[:, 0], log_p.argmax(1))
        torch.testing.assert_close(drawn.probs.sum(1), torch.ones(len(log_p)))
        torch.testing.assert_close(drawn.negentropy.double(), (log_p.exp() * log_p).sum(1), rtol=1e-6, atol=1e-6)
        for ids, shares in zip(drawn.token_ids, drawn.probs, strict=True):
            there = ids[ids >= 0].tolist()
            assert len(set(there)) == len(there)
            assert not shares[ids < 0].any()
            assert (shares[1 : len(there)] > 0).all()


def test_shares_are_the_teachers_probabilities_on_average(teacher, folder):
    """With n draws a share is off by sqrt(p (1 - p) / n) in standard deviation; five of them are never seen."""
    draws = 20_000
    write(teacher, folder, settings=of_kind("sample", k=draws))
    found = StoredTeacher(folder.path).score(COLLATE(ROWS))
    for temperature, drawn in found.samples.items():
        p = (full_logits(teacher) / temperature).softmax(-1)
        ids = drawn.token_ids.clamp(min=0)
        shares = torch.zeros_like(p).scatter_add(1, ids, drawn.probs.double())
        assert ((shares - p).abs() <= 5 * (p * (1 - p) / draws).sqrt() + 1 / draws).all()


def test_sampled_targets_do_not_depend_on_the_batch(teacher, folder, tmp_path):
    other = TargetFolder(tmp_path / "other")
    write(teacher, folder, settings=of_kind("sample", batch_size=1))
    write(teacher, other, ROWS[::-1], settings=of_kind("sample", batch_size=4))
    one, two = (StoredTeacher(f.path).score(COLLATE(ROWS)).samples[3.0] for f in (folder, other))
    width = min(one.token_ids.shape[1], two.token_ids.shape[1])
    assert torch.equal(one.token_ids[:, :width], two.token_ids[:, :width])
    assert torch.equal(one.probs[:, :width], two.probs[:, :width])

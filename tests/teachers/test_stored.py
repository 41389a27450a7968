"""A store of targets: what is in it, what is refused, what a kill and a flipped byte cost; and the teacher it is."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from trl_distill.collator import DistillationCollator
from trl_distill.errors import TeacherError
from trl_distill.losses import head_logits
from trl_distill.teachers import (
    GenerationSettings,
    StoredTeacher,
    TargetFolder,
    TargetSettings,
    Teacher,
    load_teacher,
    teaching,
    write_targets,
)
from trl_distill.teachers.shards import TargetRow, sequence_key

ROWS = [
    {"row": 0, "student_prompt": [5], "teacher_prompt": [5, 6, 7, 8], "completion": [10, 11, 12]},
    {"row": 1, "student_prompt": [6], "teacher_prompt": [9], "completion": [13]},
    {"row": 2, "student_prompt": [7], "teacher_prompt": [9, 5], "completion": [14, 15]},
    {"row": 3, "student_prompt": [8], "teacher_prompt": [9], "completion": [13]},
    {"row": 4, "student_prompt": [8], "teacher_prompt": [6], "completion": [16, 17, 18, 19]},
]
SETTINGS = TargetSettings(k=12, temperatures=(1.0, 3.0), teacher_prompt_template="t", generation={}, batch_size=2)
COLLATE = DistillationCollator(pad_token_id=0)


@pytest.fixture
def teacher(tiny_teacher_dir):
    teacher = load_teacher(str(tiny_teacher_dir))
    teacher.share(280)
    return teacher


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(teaching, "ROWS", 2)  # several shards of few sequences
    return TargetFolder(tmp_path / "store")


def write(teacher, folder, rows=ROWS, settings=SETTINGS):
    return write_targets(teacher, rows, folder, settings, progress=False)


def contents(folder):
    return {str(p.relative_to(folder.folder)): p.read_bytes() for p in folder.folder.rglob("*") if p.is_file()}


def full_logits(teacher, rows=ROWS):
    targets = teacher.score(COLLATE(rows))
    return head_logits(targets.hidden, targets.head.weight, targets.head.bias)[:, : targets.vocabulary].double()


def test_it_is_a_teacher(teacher, folder):
    write(teacher, folder)
    stored = StoredTeacher(folder.folder)
    assert isinstance(stored, Teacher)
    for name in ("name", "vocabulary", "vocabulary_rows", "length_limit", "stop_ids"):
        assert getattr(stored, name) == getattr(teacher, name), name
    assert stored.identity() == json.loads(json.dumps(teacher.identity()))
    assert stored.tokenizer.get_vocab() == teacher.tokenizer.get_vocab()


def test_what_is_stored_are_the_likeliest_tokens_and_the_exact_mass_of_the_tail(teacher, folder):
    write(teacher, folder)
    found = StoredTeacher(folder.folder).score(COLLATE(ROWS))
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
    stored = StoredTeacher(folder.folder)
    together = stored.score(COLLATE(ROWS))
    alone = [stored.score(COLLATE([row])).token_ids for row in reversed(ROWS)]
    assert torch.equal(torch.cat(alone[::-1]), together.token_ids)


def test_under_an_empty_prompt_the_first_token_has_no_target(teacher, folder):
    rows = [{"row": 0, "student_prompt": [], "teacher_prompt": [], "completion": [10, 11, 12]}, ROWS[0]]
    write(teacher, folder, rows)
    stored = StoredTeacher(folder.folder)
    assert stored.score(COLLATE(rows[:1])).token_ids.shape == (2, 12)
    student_alone = {**ROWS[0], "student_prompt": []}
    assert torch.equal(stored.score(COLLATE([student_alone])).token_ids, stored.score(COLLATE(ROWS[:1])).token_ids[1:])


def test_a_row_that_is_not_in_the_store_is_named(teacher, folder):
    write(teacher, folder)
    stored = StoredTeacher(folder.folder)
    other = {**ROWS[0], "row": 7, "completion": [10, 11]}
    with pytest.raises(TeacherError, match="no targets for train, row 7"):
        stored.check_rows([ROWS[0], other], name="train")
    with pytest.raises(TeacherError, match="no targets for the sequence"):
        stored.score(COLLATE([other]))
    with pytest.raises(TeacherError, match="no completion for a prompt"):
        stored.generate([[5, 6]], GenerationSettings())


class Killed(BaseException):
    """Stands for a kill."""


@pytest.mark.parametrize("batches", [0, 1])
def test_what_was_stopped_ends_as_the_uninterrupted_store(batches, teacher, folder, tmp_path, monkeypatch):
    whole = TargetFolder(tmp_path / "whole")
    write(teacher, whole)
    score, calls = teacher.score, []

    def dying(batch):
        calls.append(batch)
        if len(calls) > batches:
            raise Killed
        return score(batch)

    monkeypatch.setattr(teacher, "score", dying)
    with pytest.raises(Killed):
        write(teacher, folder)
    assert not folder.complete
    with pytest.raises(TeacherError, match="is unfinished"):
        StoredTeacher(folder.folder)
    monkeypatch.setattr(teacher, "score", score)
    assert write(teacher, folder) == 2 - batches  # a shard has one batch here
    assert contents(folder) == contents(whole)
    assert write(teacher, folder) == 0
    assert contents(folder) == contents(whole)


def flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize("name", ["shard-00001.parquet", "manifest.json", "tokenizer/tokenizer.json"])
@pytest.mark.parametrize("damage", [flip, lambda content: content[:-7], None], ids=["flipped", "cut", "missing"])
def test_damage_is_named_and_repaired(name, damage, teacher, folder):
    write(teacher, folder)
    before, path = contents(folder), folder.folder / name
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(TeacherError, match=f"{name}"):
        StoredTeacher(folder.folder)
    folder.discard_damaged()
    assert write(teacher, folder) == {"m": 2, "s": 1, "t": 0}[name[0]]
    assert contents(folder) == before


def test_every_flipped_bit_of_a_shard_is_found(teacher, folder):
    write(teacher, folder)
    path = folder.folder / "shard-00000.parquet"
    whole = path.read_bytes()
    for place in range(0, len(whole), 97):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        with pytest.raises(TeacherError, match=r"shard-00000\.parquet is damaged: it differs from its checksum"):
            StoredTeacher(folder.folder)


def test_a_store_is_gone_on_with_by_the_same_settings_only(teacher, folder):
    write(teacher, folder)
    for change, sentence in (
        ({"k": 9}, "another k: 12, and this run has 9"),
        ({"temperatures": (1.0,)}, "another temperatures"),
        ({"teacher_prompt_template": "u"}, "another teacher_prompt_template: 't', and this run has 'u'"),
        ({"generation": {"seed": 3}}, "another generation's seed"),
    ):
        with pytest.raises(TeacherError, match=sentence):
            write(teacher, folder, settings=TargetSettings(**{**vars(SETTINGS), **change}))
    with pytest.raises(TeacherError, match="another sequences's count: 4, and this run has 2"):
        write(teacher, folder, ROWS[:2])
    teacher.share(270)
    with pytest.raises(TeacherError, match="another teacher's rows"):
        write(teacher, folder)


def test_a_folder_of_something_else_is_left_alone(teacher, folder):
    folder.folder.mkdir()
    (folder.folder / "thesis.txt").write_text("mine")
    with pytest.raises(TeacherError, match=r"holds 'thesis\.txt'"):
        write(teacher, folder)
    with pytest.raises(TeacherError, match=r"no manifest\.json"):
        StoredTeacher(folder.folder)


def test_a_student_with_fewer_tokens_is_refused(teacher, folder):
    write(teacher, folder)
    stored = StoredTeacher(folder.folder)
    stored.share(300)
    assert stored.vocabulary == 280
    with pytest.raises(TeacherError, match="has targets over 280 tokens"):
        stored.share(270)


def test_more_tokens_than_there_are_is_all_of_them(teacher, folder):
    write(teacher, folder, settings=TargetSettings(**{**vars(SETTINGS), "k": 10_000}))
    assert StoredTeacher(folder.folder).score(COLLATE(ROWS)).token_ids.shape == (11, 280)


@pytest.mark.parametrize(("vocabulary", "kind"), [(2**16, "uint16"), (2**16 + 1, "uint32")])
def test_ids_take_the_smallest_type_and_come_back(vocabulary, kind, folder):
    import pyarrow.parquet as pq

    ids = np.array([[vocabulary - 1, 3], [2, 1], [0, 4]])
    log_probs, normalizers = np.linspace(-9, 0, 6, dtype=np.float16).reshape(3, 2), np.ones((3, 1), np.float32)
    row = TargetRow(sequence_key([1], [2, 3, 4]), np.array([2, 3, vocabulary - 1]), ids, log_probs, normalizers)
    folder.write_manifest({"format": 1, "complete": False})
    folder.write_shard("shard-00000.parquet", [row, row], vocabulary=vocabulary)
    assert str(pq.read_schema(folder.folder / "shard-00000.parquet").field("token_ids").type.value_type) == kind
    for found in folder.read_shard("shard-00000.parquet", k=2, temperatures=1):
        assert found.key == row.key
        for name in ("completion", "token_ids", "log_probs", "log_normalizers"):
            assert np.array_equal(getattr(found, name), getattr(row, name)), name

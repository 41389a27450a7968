"""Which names mean a server, and which are refused."""

from __future__ import annotations

import pytest

from trl_distill import LLMTrainingParams, ModelError, TeacherError, load_teacher, run
from trl_distill.config.endpoints import Endpoint, endpoint_of, is_openai_name, parse_endpoint, takes_temperature


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("openai:gpt-4o-mini", Endpoint("gpt-4o-mini")),
        ("openai:ft:gpt-4o:me::1", Endpoint("ft:gpt-4o:me::1")),
        ("http://127.0.0.1:8000/v1#m", Endpoint("m", "http://127.0.0.1:8000/v1")),
        ("HTTPS://Host.Example/v1/#org/model@1", Endpoint("org/model@1", "https://host.example/v1")),
        ("http://[::1]:8000#m", Endpoint("m", "http://[::1]:8000")),
        ("gpt2", None),
        ("./folder", None),
        ("org/model", None),
        ("httpie", None),
    ],
)
def test_a_teacher_name_is_parsed_into_url_and_model(name, expected):
    assert parse_endpoint(name) == expected


@pytest.mark.parametrize(
    "name",
    ["openai:", "http://host:8000/v1", "http://host:8000/v1#", "http://#m", "http://host:port/v1#m"],
)
def test_an_endpoint_without_url_or_model_is_refused(name):
    with pytest.raises(TeacherError, match="teacher_model"):
        parse_endpoint(name)


@pytest.mark.parametrize("name", ["http://user:s3cret@host/v1#m", "https://host/v1?api_key=s3cret#m"])
def test_a_url_with_a_secret_is_refused_and_not_repeated(name):
    for refused in (parse_endpoint, lambda name: LLMTrainingParams(model="m", teacher_model=name).validate()):
        with pytest.raises(TeacherError, match=r"teacher.key.env") as error:
            refused(name)
        assert "s3cret" not in str(error.value)


def test_a_script_refuses_a_url_with_a_secret():
    from trl_distill import DistillationSFTConfig

    with pytest.raises(TeacherError, match="teacher_key_env"):
        DistillationSFTConfig(output_dir="unused", teacher_model="http://user:s3cret@host/v1#m", use_cpu=True)


def test_a_bare_openai_model_name_is_an_openai_endpoint():
    ours = ["gpt-3.5-turbo", "gpt-4o-mini", "gpt-4o", "gpt-4.1-nano", "gpt-5", "o1", "o1-mini", "o3", "o4-mini"]
    ours += ["chatgpt-4o-latest", "code-davinci-002", "text-davinci-003", "gpt-3.5-turbo-instruct"]
    others = ["gpt2", "gpt2-large", "gpt2-xl", "gpt-neo-1.3B", "gpt-j-6b", "gpt-oss-20b", "openai/gpt-oss-20b"]
    others += ["openai/gpt-4o", "embedded", "opt-125m", "olmo", "o1labs", "GPT-4", "davinci"]
    assert [name for name in ours + others if is_openai_name(name)] == ours


def test_a_folder_takes_precedence_over_an_openai_model_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert endpoint_of("gpt-4o-mini") == Endpoint("gpt-4o-mini")
    (tmp_path / "gpt-4o-mini").mkdir()
    assert endpoint_of("gpt-4o-mini") is None
    assert endpoint_of("openai:gpt-4o-mini") == Endpoint("gpt-4o-mini")


def test_a_server_needs_the_students_tokenizer():
    with pytest.raises(TeacherError, match="tokenizer="):
        load_teacher("openai:gpt-4o")


def test_openai_reasoning_models_are_sent_no_temperature():
    assert not any(map(takes_temperature, ["o3", "o4-mini", "gpt-5", "gpt-5-mini"]))
    assert all(map(takes_temperature, ["gpt-4o", "gpt-5-chat-latest", "gpt-3.5-turbo", "embedded", "olmo-7b"]))


def test_an_unknown_model_name_suggests_openai_for_a_teacher_only():
    with pytest.raises(TeacherError, match=r"openai:claude-9.*http://host:port/v1#claude-9"):
        load_teacher("claude-9")
    with pytest.raises(ModelError) as error:
        run(LLMTrainingParams(model="claude-9", teacher_model="embedded", data_path=[{"text": "a"}]))
    assert "openai:" not in str(error.value)

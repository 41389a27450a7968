r"""TRL's SFT script with two imports replaced: all of its flags, and those of distillation.

Without `--use-distillation` it trains as TRL's own does, to the bit. Flags can come from a file: `--config run.yaml`.

    python examples/trl_sft.py --model-name-or-path embedded --dataset-name ./queries --output-dir runs/sft \
        --use-distillation --teacher-model embedded --student-prompt-template "{input}" \
        --teacher-prompt-template "Reverse the order of the words.\n\nText: {input}\nResult:" --completions teacher

`./queries` is a folder with `train.jsonl`, with lines such as {"text": "red green blue"}; a Hub name works too.
"""

from __future__ import annotations

from typing import Any

from datasets import load_dataset
from trl import (
    DatasetMixtureConfig,
    ModelConfig,
    ScriptArguments,
    TrlParser,
    get_dataset,
    get_peft_config,
    get_quantization_config,
)

from trl_distill import DistillationSFTConfig as SFTConfig
from trl_distill import DistillationSFTTrainer as SFTTrainer


def load(script: ScriptArguments, mixture: DatasetMixtureConfig) -> Any:
    """Return the datasets by split: the mixture of a configuration file, or the one that is named."""
    if mixture.datasets:
        return get_dataset(mixture)
    if not script.dataset_name:
        raise SystemExit("trl_sft.py: error: no data; give --dataset-name, or datasets in the file of --config.")
    name, config, streaming = script.dataset_name, script.dataset_config, script.dataset_streaming
    return load_dataset(name, name=config, streaming=streaming)  # nosec B615  # as TRL's script, the newest revision


def main(args: list[str] | None = None) -> SFTTrainer:
    """Train, save, and push where that is asked for."""
    parser = TrlParser((ScriptArguments, SFTConfig, ModelConfig, DatasetMixtureConfig))
    script, config, model, mixture = parser.parse_args_and_config(args, fail_with_unknown_args=False)
    config.model_init_kwargs = {
        "revision": model.model_revision,
        "trust_remote_code": config.trust_remote_code,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
        **(config.model_init_kwargs or {}),
    }
    data = load(script, mixture)
    trainer = SFTTrainer(
        model=model.model_name_or_path,
        args=config,
        train_dataset=data[script.dataset_train_split],
        eval_dataset=data[script.dataset_test_split] if config.eval_strategy != "no" else None,
        quantization_config=get_quantization_config(model),
        peft_config=get_peft_config(model),
    )
    trainer.train(resume_from_checkpoint=config.resume_from_checkpoint)
    trainer.save_model(config.output_dir)
    trainer.accelerator.print(f"The model is in {config.output_dir}.")
    if config.push_to_hub:
        trainer.push_to_hub(dataset_name=script.dataset_name)
    if hasattr(trainer, "end"):  # transformers 5.18 and newer: closes trackers and the process group
        trainer.end()
    return trainer


if __name__ == "__main__":
    main()

"""Settings of AutoTrain, TRL and transformers that are no parameters here, and what to do instead.

A few other names are accepted, as flags too: `training_params.ALIASES`. Standard library only.
"""

from __future__ import annotations

_PREFERENCES = "drop it: preferences are for TRL's DPOTrainer, which can start from the student"

INSTEAD = {
    # AutoTrain 0.8.36: its command, its LLMTrainingParams and its files
    "add_eos_token": "drop it: a completion ends with the end of sequence",
    "backend": "drop it: a run is on the machine that starts it",
    "base_model": "give --model",
    "deploy": "drop it, and serve the student with `aitraining export`",
    "disable_gradient_checkpointing": "drop it: activations are kept without --gradient-checkpointing",
    "distributed_backend": "drop it, and start the run with `accelerate launch -m trl_distill.cli llm`",
    "dpo_beta": _PREFERENCES,
    "inference": "drop it: the project's README.md shows how to ask the student",
    "max_completion_length": "give --distill-max-teacher-length, for what the teacher generates",
    "max_prompt_length": "give --block-size, for a student's prompt and completion together",
    "model_ref": _PREFERENCES,
    "padding": "drop it: padding is not learned from, on either side",
    "rejected_text_column": _PREFERENCES,
    "repo_id": "give --project-name, whose last part names the repository, and --username",
    "task": "give --trainer",
    "train_batch_size": "give --batch-size",
    "unsloth": "drop it: models load with transformers; --peft with --quantization int4 saves memory",
    "use_flash_attention_2": "give --attn-implementation 'flash_attention_2'",
    "use_int4": "give --quantization int4",
    "use_int8": "give --quantization int8",
    # TRL and transformers
    "bf16": "give --mixed-precision bf16",
    "dataset_name": "give --data-path",
    "dataset_text_field": "give --text-column",
    "evaluation_strategy": "give --eval-strategy",
    "fp16": "give --mixed-precision fp16",
    "load_in_4bit": "give --quantization int4",
    "load_in_8bit": "give --quantization int8",
    "lora_target_modules": "give --target-modules",
    "lr_scheduler_type": "give --scheduler",
    "max_new_tokens": "give --distill-max-teacher-length",
    "model_name_or_path": "give --model",
    "optim": "give --optimizer",
    "output_dir": "give --project-name",
    "per_device_eval_batch_size": "give --eval-batch-size",
    "report_to": "give --log",
    "resume_from_checkpoint": "give --resume, with the checkpoint's project as --project-name",
    "torch_dtype": "give --dtype",
    "use_peft": "give --peft",
    "warmup_steps": "give --warmup-ratio",
}

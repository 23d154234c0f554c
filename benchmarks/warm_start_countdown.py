"""Make the demo model: a half-million-parameter Llama, warm-started on countdown by a weak teacher.

    python benchmarks/warm_start_countdown.py

The script writes a Hugging Face folder, reads it back, and prints its pass@k on held-out problems. On one CPU thread
the same arguments and library versions give the same files. Another kind of CPU may round differently.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from maxpo.rewards.verifiers.countdown import countdown
from maxpo.tasks.base import TaskProblem
from maxpo.tasks.countdown import count, problems, teacher

Row = tuple[list[int], list[bool]]
"""Tokens of a prompt with its answer, and a mask of the learned tokens."""

OUT = Path(__file__).resolve().parents[1] / "configs/models/countdown-0.5m"

PAD, BOS, EOS, UNK = range(4)
SPECIAL = ["<pad>", "<bos>", "<eos>", "<unk>"]
# 64 entries with the special ones. Countdown needs only the entries before the letters, other tasks use the rest.
CHARACTERS = "0123456789+-*=,: abcdefghijklmnopqrstuvwxyz.;!?/()[]<>_#%&|\n"

BATCH = 128
LEARNING_RATE = 2e-3
WARMUP_STEPS = 50
MAX_NEW_TOKENS = 26
EVAL_PROMPTS = 128
EVAL_SAMPLES = 32
EVAL_K = (1, 4, 8, 16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT, help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--eval-size", type=int, default=512, help=f"held-out problems, at least {EVAL_PROMPTS}")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--solve-share", type=float, default=0.5, help="how often the teacher solves the problem")
    args = parser.parse_args()
    if args.eval_size < EVAL_PROMPTS:
        parser.error(f"--eval-size must be at least {EVAL_PROMPTS}, got {args.eval_size}")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(args.seed)

    train, held_out = problems(args.seed, count(held_out=False), args.eval_size)
    tokenizer = build_tokenizer()
    model = build_model()
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, {len(train)} training problems")
    started = time.process_time()
    rng = random.Random(args.seed)
    warm_start(model, lambda: teacher_batch(tokenizer, train, args.solve_share, rng), args.steps)
    print(f"warm start: {time.process_time() - started:.0f} CPU seconds")
    tokenizer.save_pretrained(args.out)
    model.to(torch.bfloat16).save_pretrained(args.out)

    # Measure the written folder, with its weights rounded to bfloat16.
    tokenizer = AutoTokenizer.from_pretrained(args.out)
    model = AutoModelForCausalLM.from_pretrained(args.out, dtype=torch.float32)
    correct = correct_counts(model, tokenizer, held_out[:EVAL_PROMPTS], EVAL_SAMPLES)
    for k in EVAL_K:
        print(f"pass@{k}: {100 * sum(pass_at_k(EVAL_SAMPLES, c, k) for c in correct) / len(correct):.1f} %")


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per character, `<unk>` for unknown characters, and no added special tokens."""
    vocab = {token: index for index, token in enumerate([*SPECIAL, *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token=SPECIAL[UNK]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()  # otherwise decoding puts a space between tokens
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=SPECIAL[PAD],
        bos_token=SPECIAL[BOS],
        eos_token=SPECIAL[EOS],
        unk_token=SPECIAL[UNK],
        padding_side="left",
        model_max_length=256,
        clean_up_tokenization_spaces=False,
    )


def build_model() -> LlamaForCausalLM:
    """Return the model with random weights, in float32."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(SPECIAL) + len(CHARACTERS),
            hidden_size=128,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            intermediate_size=256,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            pad_token_id=PAD,
            bos_token_id=BOS,
            eos_token_id=EOS,
        )
    )


def teacher_batch(
    tokenizer: PreTrainedTokenizerFast, train: list[TaskProblem], solve_share: float, rng: random.Random
) -> list[Row]:
    """Return problems with answers of the teacher. The answer and the end of sequence are learned."""
    rows: list[Row] = []
    for problem in rng.choices(train, k=BATCH):
        prompt = tokenizer.encode(problem.prompt)
        text = teacher(problem.reference["numbers"], problem.reference["target"], solve_share, rng)
        answer = [*tokenizer.encode(text), EOS]
        rows.append((prompt + answer, [False] * len(prompt) + [True] * len(answer)))
    return rows


def warm_start(model: LlamaForCausalLM, batch: Callable[[], list[Row]], steps: int) -> None:
    """Train on a new `batch()` for each step, with the mean cross-entropy over the tokens to be learned."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _lr_factor(step, steps))
    model.train()
    for step in range(steps):
        rows = batch()
        longest = max(len(ids) for ids, _ in rows)
        # Padding on the right needs no attention mask: no loss token can see it.
        token_ids = torch.full((len(rows), longest), PAD)
        labels = torch.full((len(rows), longest), -100)
        for row, (ids, learned) in enumerate(rows):
            token_ids[row, : len(ids)] = torch.tensor(ids)
            labels[row, : len(ids)] = torch.where(torch.tensor(learned), token_ids[row, : len(ids)], -100)
        loss = model(input_ids=token_ids, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 100 == 0 or step == steps - 1:
            print(f"step {step}: loss {loss.item():.4f}", flush=True)


def _lr_factor(step: int, steps: int) -> float:
    """Return the factor of the learning rate: linear warm-up, then a cosine to 0 at the last step."""
    if step < WARMUP_STEPS:
        return (step + 1) / WARMUP_STEPS
    return 0.5 * (1 + math.cos(math.pi * (step - WARMUP_STEPS) / max(1, steps - WARMUP_STEPS)))


@torch.no_grad()
def correct_counts(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, held_out: list[TaskProblem], samples: int
) -> list[int]:
    """Return the number of right completions among `samples` at temperature 1, for each problem."""
    model.eval()
    counts: list[int] = []
    for start in range(0, len(held_out), 32):  # 32 prompts at a time bound the memory
        chunk = held_out[start : start + 32]
        inputs = tokenizer([p.prompt for p in chunk], padding=True, return_tensors="pt")
        generate: Any = model.generate  # pyright: ignore[reportAttributeAccessIssue]
        output_ids = generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            do_sample=True,
            temperature=1.0,
            top_k=0,
            num_return_sequences=samples,
            max_new_tokens=MAX_NEW_TOKENS,
        )
        texts = tokenizer.batch_decode(output_ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for row, problem in enumerate(chunk):
            answers = texts[row * samples : (row + 1) * samples]
            counts.append(sum(countdown(answer, problem.reference).reward == 1.0 for answer in answers))
    return counts


def pass_at_k(n: int, c: int, k: int) -> float:
    """Return the unbiased pass@k of one problem with c of n samples correct: 1 - C(n-c, k) / C(n, k)."""
    return 1 - math.comb(n - c, k) / math.comb(n, k)


if __name__ == "__main__":
    main()

"""Make the model of the calculator example: the demo's Llama, warm-started by a teacher that seldom calculates.

    python benchmarks/warm_start_calculator.py

The prompt is a product, `37 * 12=`. One time in eight the teacher asks the calculator, `<37 * 12>`, reads `444:` and
answers `444`. Otherwise the teacher guesses. So the model can do both, without a preference for the right way. The
script writes a Hugging Face folder. On one CPU thread the same arguments and library versions give the same files.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

from warm_start_countdown import BATCH, EOS, Row, build_model, build_tokenizer, warm_start

from maxpo.environments.calculator import Calculator
from maxpo.tasks.arithmetic import problems
from maxpo.tasks.base import TaskProblem

OUT = Path(__file__).resolve().parents[1] / "configs/models/calculator-0.5m"
TASK = {"terms": 2, "largest": 99, "operations": "*", "question": "{chain}="}
ARGS = {"opening": "<", "closing": ">", "reply": "{value}:"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT, help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--call-share", type=float, default=0.125, help="how often the teacher asks the calculator")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(args.seed)
    # Only training problems: the evaluation problems of a run with this seed are not among them.
    train, _ = problems(args.seed, 3000, 0, **TASK)
    tokenizer = build_tokenizer()
    model = build_model()
    rng = random.Random(args.seed)

    def episode(problem: TaskProblem) -> Row:
        """Return one episode. The tokens of the policy are learned, those of the calculator are not."""
        chain = problem.prompt.removesuffix("=")
        pieces = [(problem.prompt, False)]
        if rng.random() < args.call_share:
            call = f"<{chain}>"
            pieces += [(call, True), (Calculator(**ARGS).step(call).observation, False)]
            pieces += [(str(problem.reference), True)]
        else:
            pieces += [(str(rng.randint(1, 9999)), True)]
        ids: list[int] = []
        learned: list[bool] = []
        for text, own in pieces:
            tokens = tokenizer.encode(text)
            ids += tokens
            learned += [own] * len(tokens)
        return [*ids, EOS], [*learned, True]

    started = time.process_time()
    warm_start(model, lambda: [episode(p) for p in rng.choices(train, k=BATCH)], args.steps)
    print(f"warm start: {time.process_time() - started:.0f} CPU seconds")
    tokenizer.save_pretrained(args.out)
    model.to(torch.bfloat16).save_pretrained(args.out)


if __name__ == "__main__":
    main()

"""Users' functions by address: those of docs/extend.md work as the page says, and wrong ones are told."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from launch.cli import main
from launch.cluster.paths import with_absolute_paths
from launch.run.trial import function_problems, trial_problems
from maxpo.config import AlgorithmConfig, RewardConfig
from maxpo.configure.loading import load_config
from maxpo.estimators.advantages import ADVANTAGES
from maxpo.estimators.mixing import estimator
from maxpo.losses.policy import LossInput, policy_loss
from maxpo.rewards.registry import find_verifier
from maxpo.types import Group, Prompt
from rollout.scoring.verifier_pool import RewardPool
from tests.fakes import completion

PAGE = Path("docs/extend.md").absolute()
DEMO = Path("configs/presets/demo.yaml").absolute()


@pytest.fixture
def examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files of the page, which is the current folder."""
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        name = block.splitlines()[0].removeprefix("# ")
        (tmp_path / name).write_text(block)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_page_has_four_examples(examples: Path) -> None:
    assert sorted(file.name for file in examples.iterdir()) == ["best_of_two.py", "pulled.py", "rare.py", "shout.py"]


def test_the_estimator_is_that_of_the_page(examples: Path) -> None:
    rewards = torch.rand(5, 7, generator=torch.Generator().manual_seed(0))
    valid = torch.rand(5, 7, generator=torch.Generator().manual_seed(1)) < 0.8
    own = estimator("best_of_two.py:best_of_two")(rewards, 2, valid)
    torch.testing.assert_close(own, ADVANTAGES["pkpo_loo_minus_one"](rewards, 2, valid))
    assert own.dtype == rewards.dtype


def test_check_advantage_judges_it(examples: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "best_of_two.py:best_of_two"
    assert main(["check-advantage", "--estimator", name, "--n", "6", "--k", "2", "--json"]) == 0
    rows = {row["estimator"]: row for row in json.loads(capsys.readouterr().out)["estimators"]}
    assert (rows[name]["unbiased"], rows[name]["centred"]) == (True, False)
    assert rows[name]["variance"] == pytest.approx(rows["pkpo_loo_minus_one"]["variance"])
    assert main(["check-advantage", "--estimator", name, "--n", "6", "--k", "3", "--json"]) == 0
    rows = {row["estimator"]: row for row in json.loads(capsys.readouterr().out)["estimators"]}
    assert not rows[name]["unbiased"]


def test_the_loss_is_that_of_the_page(examples: Path) -> None:
    new = torch.tensor([-1.0, -2.0], requires_grad=True)
    old = torch.tensor([-1.5, -2.0])
    x = LossInput(
        logprobs=new,
        old_logprobs=old,
        advantages=torch.tensor([2.0, 1.0]),
        mask=torch.ones(2, dtype=torch.bool),
        sequence=torch.zeros(2, dtype=torch.int64),
        algorithm=AlgorithmConfig(),
    )
    torch.testing.assert_close(policy_loss("pulled.py:pulled")(x), torch.tensor([2.0 + 0.125, 2.0]))


def test_the_verifier_is_that_of_the_page(examples: Path) -> None:
    score = find_verifier("shout.py:shout")("p", "YES", "yes")
    assert score.parts == {"right": 1.0, "length": -0.003}
    assert score.reward == pytest.approx(0.997)


def answers(*texts: str) -> Group:
    prompt = Prompt(prompt_id="p", text="?", token_ids=(1,), reference="a", source="s")
    return Group(prompt=prompt, completions=tuple(completion(text=text) for text in texts))


def test_the_group_reward_is_that_of_the_page_and_leaves_success_alone(examples: Path) -> None:
    pool = RewardPool(RewardConfig(verifier="exact", group="rare.py:rare", max_chars=5), 10)
    try:
        scored = pool.score([answers("a", "a", "b", "too long"), answers("a", "b", "b", "c")])
        first, second = pool.judge(scored)
    finally:
        pool.shutdown()
    assert first.rewards == (0.5, 0.5, 0.0, 0.0)
    assert first.reward_parts["verifier"] == (1.0, 1.0, 0.0, 0.0)
    assert first.successes == (True, True, False, False)
    assert first.valid == (True, True, True, False)
    assert second.rewards == (1.0, 0.0, 0.0, 0.0)
    assert [g.rewards for g in scored] == [(1.0, 1.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0)]


def test_groups_on_which_the_function_fails_are_masked(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(
        "import time\n"
        "def judge(prompt, texts, rewards, reference):\n"
        "    if texts[0] == 'short': return [1.0]\n"
        "    if texts[0] == 'nan': return [float('nan')] * len(texts)\n"
        "    if texts[0] == 'slow': time.sleep(60)\n"
        "    return [2.0] * len(texts)\n"
    )
    pool = RewardPool(RewardConfig(verifier="exact", group=f"{file}:judge", timeout_s=1.0), 10)
    try:
        judged = pool.judge(pool.score([answers(first, "a") for first in ("short", "nan", "slow", "good")]))
    finally:
        pool.shutdown()
    assert [g.valid for g in judged] == [(False, False)] * 3 + [(True, True)]
    assert judged[3].rewards == (2.0, 2.0)
    assert "returned 1 rewards for 2 answers" in judged[0].outcomes[0]
    assert "not finite" in judged[1].outcomes[0]
    assert judged[2].outcomes == ("timeout", "timeout")


def test_a_group_reward_that_fails_is_told_before_a_run(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text("def judge(prompt, texts, rewards, reference): return rewards[:1]\n")
    config = load_config([DEMO], [f"reward.group={file}:judge", "model.path=configs/models/countdown-0.5m"]).config
    prompt = Prompt(prompt_id="p", text="?", token_ids=(1,), reference={"numbers": [1, 2], "target": 3}, source="s")
    (problem,) = trial_problems(config, prompt)
    assert problem.startswith(f"reward.group: {file}:judge failed on the first prompt")
    assert "returned 1 rewards for 2 answers" in problem


def test_settings_get_absolute_paths(examples: Path) -> None:
    overrides = [
        *("algorithm.advantage=best_of_two.py:best_of_two", "algorithm.loss=pulled.py:pulled"),
        *("algorithm.shadow=[grpo, best_of_two.py:best_of_two]", "reward.verifier=shout.py:shout"),
        "reward.group=rare.py:rare",
        f"model.path={DEMO.parents[1] / 'models/countdown-0.5m'}",
    ]
    config = with_absolute_paths(load_config([DEMO], overrides)).config
    assert config.algorithm.advantage == f"{examples}/best_of_two.py:best_of_two"
    assert config.algorithm.loss == f"{examples}/pulled.py:pulled"
    assert config.algorithm.shadow == ["grpo", f"{examples}/best_of_two.py:best_of_two"]
    assert config.reward.verifier == f"{examples}/shout.py:shout"
    assert config.reward.group == f"{examples}/rare.py:rare"


WRONG = """
import torch
def shape(rewards, k, valid): return rewards[:, :1]
def number(rewards, k, valid): return 1.0
def infinite(rewards, k, valid): return rewards / 0
def peeks(rewards, k, valid): return rewards - rewards.mean(1, keepdim=True)
def raises(rewards, k, valid): raise KeyError("x")
def flat(x): return -x.advantages * x.old_logprobs
def short(x): return x.logprobs[:3]
def still(x): return 0 * x.logprobs
class Thing: pass
"""


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"advantage": "shape"}, r"must return a tensor \[3, 16\], and returned a tensor \[3, 1\]"),
        ({"advantage": "number"}, r"must return a tensor \[3, 16\], and returned float"),
        ({"advantage": "infinite"}, "an advantage is not finite"),
        ({"mix_with": "peeks"}, "the reward of a sample that is not valid changes advantages"),
        ({"shadow": ["raises"]}, "KeyError: 'x'"),
        ({"advantage": "missing"}, "cannot be imported: AttributeError"),
        ({"advantage": "Thing"}, "is not a function"),
        ({"loss": "flat"}, "no gradient flows"),
        ({"loss": "short"}, "a loss for each of the 12 tokens"),
        ({"loss": "still"}, "the gradient .* is 0"),
    ],
)
def test_wrong_functions_are_told(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = tmp_path / "wrong.py"
    file.write_text(WRONG)
    (key,) = settings
    named = {k: [f"{file}:{n}" for n in v] if isinstance(v, list) else f"{file}:{v}" for k, v in settings.items()}
    (problem,) = function_problems(AlgorithmConfig(**named))
    assert problem.startswith(f"algorithm.{key}: ")
    assert re.search(message, problem), problem


def test_a_file_that_is_missing_or_broken_is_told(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("def f(:")
    for name, message in (("nothing.py:f", "there is no file"), ("broken.py:f", "SyntaxError")):
        (problem,) = function_problems(AlgorithmConfig(advantage=f"{tmp_path}/{name}"))
        assert message in problem

"""Training of explicit values: rows of prefixes, batches of them, and what each prefix regresses on.

A response of n tokens, its EOS among them, has the prefixes 0..n: what is there after t of its
tokens. A scalar head has a value for each, read at the prefix's last token; prefix 0 ends with the
prompt's. A token-Q head has V(x, y≤t) = Q(h_{t−1})[y_t] for t = 1..n; the empty response is worth
0 by definition and is not trained. The last prefix is trained on the reward, whether it ends with
EOS or at a limit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import Trainer, TrainingArguments

from ivgcli.errors import RecordError
from ivgcli.objectives import (
    expected_next_values,
    final_reward_targets,
    lambda_returns,
    prefix_bce,
    prefix_loss,
    within,
)
from ivgcli.recipes.training import ValueSpec
from ivgcli.training.lookahead import as_decoded, packed_next_values, require_packable
from ivgcli.training.scorer import PrefixScorer
from ivgcli.training.sequences import Example

Targets = Sequence[float | None]


def rows(
    examples: Sequence[Example],
    targets: Sequence[Targets | None] | None = None,
    ahead: Sequence[tuple[Tensor, Tensor]] | None = None,
) -> list[dict[str, Any]]:
    """Return what a `PrefixCollator` takes, one row for each response.

    Args:
        examples: responses with their rewards.
        targets: for monte-carlo, what the prefixes 0..n of each response regress on, None for a
            prefix that is not trained; None for a response: its reward, at every prefix.
        ahead: for cd-q, the `next_distributions` of the examples.

    Raises:
        RecordError: a prompt without a token, or a response without a finite reward.
    """
    found = []
    for number, example in enumerate(examples):
        if not example.prompt_ids:
            raise RecordError(example.id, "its prompt has no token", "leave it out")
        if example.reward is None or not math.isfinite(example.reward):
            what = f"its reward is {example.reward}, not a finite number"
            raise RecordError(example.id, what, "leave it out")
        row: dict[str, Any] = {
            "prompt_ids": example.prompt_ids,
            "response_ids": example.response_ids,
            "reward": float(example.reward),
        }
        own = None if targets is None else targets[number]
        if own is not None:
            row["targets"] = list(own)
        if ahead is not None:
            row["next_ids"], row["next_probabilities"] = ahead[number]
        found.append(row)
    return found


class PrefixCollator:
    """Makes a batch of rows: sequences padded on the right, and where each prefix's value is read.

    Args:
        pad_id: token to pad with; it is never attended to nor read.
        spec: the head decides which prefixes there are, the target what comes along.
    """

    def __init__(self, pad_id: int, spec: ValueSpec) -> None:
        self.pad_id = pad_id
        self.spec = spec
        self.first = 0 if spec.head == "scalar" else 1

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Return the tensors of a batch.

        Returns:
            (B, S) input_ids and attention_mask; (B, T) reads, the positions that values are read
            off, and trained, which prefixes have a target; (B,) rewards and lengths, the number of
            prefixes; for a token-Q head (B, T) tokens; for monte-carlo (B, T) targets; for cd-q
            (B, T, C) next_ids and next_probabilities.
        """
        sequences = [torch.tensor([*row["prompt_ids"], *row["response_ids"]]) for row in rows]
        sizes = torch.tensor([len(sequence) for sequence in sequences])
        prompts = torch.tensor([len(row["prompt_ids"]) for row in rows])
        lengths = sizes - prompts + 1 - self.first
        # A batch of nothing but empty responses still has a column, of which nothing is trained.
        horizon = max(1, int(lengths.max()))
        input_ids = pad_sequence(sequences, batch_first=True, padding_value=self.pad_id)
        reads = prompts[:, None] - 1 + torch.arange(horizon)
        batch = {
            "input_ids": input_ids,
            "attention_mask": within(sizes, input_ids.shape[1]).long(),
            "reads": reads.clamp(max=input_ids.shape[1] - 1),
            "trained": within(lengths, horizon),
            "rewards": torch.tensor([row["reward"] for row in rows], dtype=torch.float32),
            "lengths": lengths,
        }
        if self.first:
            # Where the last response ends with its batch, the column past its end has no next token.
            following = (reads + 1).clamp(max=input_ids.shape[1] - 1)
            batch["tokens"] = input_ids.gather(1, following)
        if self.spec.target == "monte-carlo":
            self._put_targets(batch, rows)
        if self.spec.target == "cd-q":
            for name in ("next_ids", "next_probabilities"):
                tables = [torch.as_tensor(row[name])[self.first :] for row in rows]
                table = pad_sequence(tables, batch_first=True)
                spare = horizon - table.shape[1]  # 1 in a batch of empty responses, else 0
                batch[name] = nn.functional.pad(table, (0, 0, 0, spare))
        return batch

    def _put_targets(self, batch: dict[str, Tensor], rows: Sequence[Mapping[str, Any]]) -> None:
        """Add the rows' own targets to a batch, and the reward where a row has none."""
        horizon = batch["trained"].shape[1]
        targets = final_reward_targets(batch["rewards"], batch["lengths"], horizon)
        for number, row in enumerate(rows):
            own = row.get("targets")
            if own is None:
                continue
            own = list(own)[self.first :]
            if len(own) != int(batch["lengths"][number]):
                raise AssertionError("a response has one target for each of its prefixes, or none")
            given = [math.nan if target is None else target for target in own]
            targets[number, : len(own)] = torch.tensor(given)
        batch["trained"] &= targets.isfinite()
        batch["targets"] = targets.masked_fill(~batch["trained"], 0.0)


class ValueTrainer(Trainer):  # type: ignore[misc]
    """Fits a prefix scorer to the targets of a recipe's `value` section.

    The loss of a step is a mean over its responses, whatever parts they come in: as long as the
    parts are of one size, accumulated passes and several processes change nothing.

    Args:
        model: the scorer.
        args: arguments with `remove_unused_columns=False`.
        spec: head, target and their numbers.
        pad_id: token to pad with.
        train_dataset: what `rows` returned.
        eval_dataset: the same of held-out responses.
        rest: more arguments of transformers' trainer.

    Raises:
        ModelError: cd-q with a scalar head needs packed passes, which the network does not take.
    """

    loss_is_scaled_for_ga = False

    def __init__(
        self,
        model: PrefixScorer,
        args: TrainingArguments,
        spec: ValueSpec,
        pad_id: int,
        train_dataset: Sequence[Mapping[str, Any]],
        eval_dataset: Sequence[Mapping[str, Any]] | None = None,
        **rest: Any,
    ) -> None:
        if spec.target == "cd-q" and spec.head == "scalar":
            require_packable(model)
        self.spec = spec
        self.mean_prefixes = mean_prefixes(train_dataset, spec)
        super().__init__(
            model=model,
            args=args,
            data_collator=PrefixCollator(pad_id, spec),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            **rest,
        )
        # Without labels of its own, evaluation would not call compute_loss.
        self.can_return_loss = True
        self.label_names: list[str] = []

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return the loss of a batch, and its (B, T) values where they are asked for."""
        values = model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            reads=inputs["reads"],
            tokens=inputs.get("tokens"),
        )
        targets = self.targets(model, values.detach(), inputs)
        trained = inputs["trained"]
        if self.spec.target == "fudge-bce":
            loss = prefix_bce(values, targets, trained, self.mean_prefixes)
        else:
            loss = prefix_loss(values, targets, trained, self.mean_prefixes)
        return (loss, {"values": values}) if return_outputs else loss

    def targets(self, model: nn.Module, values: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return what each prefix of a batch regresses on (B, T).

        Args:
            model: the scorer, as it is wrapped.
            values: (B, T) its values of the prefixes.
            inputs: the batch.
        """
        rewards, lengths = inputs["rewards"], inputs["lengths"]
        if self.spec.target == "td-lambda":
            return lambda_returns(values, rewards, lengths, self.spec.lam)
        if self.spec.target == "cd-q":
            ahead = self.next_values(model, inputs)
            return expected_next_values(ahead, inputs["next_probabilities"], rewards, lengths)
        if self.spec.target == "monte-carlo":
            return inputs["targets"]
        if self.spec.target == "fudge-bce":
            rewards = (rewards > self.spec.threshold).float()
        return final_reward_targets(rewards, lengths, values.shape[1])

    def next_values(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return V(prefix + candidate) (B, T, C) by the current weights, without gradient.

        The pass goes beside the distributed wrapper, which needs to see gradients only, and would
        wait for as many passes of every process.
        """
        scorer = self.accelerator.unwrap_model(model)
        candidates = inputs["next_ids"]
        sequences = (inputs["input_ids"], inputs["attention_mask"])
        last = inputs["input_ids"].shape[1] - 1
        with as_decoded(scorer):
            if self.spec.head == "token-q":
                # Prefix t was read before its last token; what follows it is read at that token.
                after = (inputs["reads"] + 1).clamp(max=last)
                every: Tensor = scorer(*sequences, after, candidates)
                return every
            # A response's last prefix regresses on the reward. A token after it would be wasted, and
            # may be beyond the network's context.
            before = inputs["reads"][:, :-1].clamp(max=last - 1)
            ahead = packed_next_values(scorer, *sequences, before, candidates[:, :-1])
            return nn.functional.pad(ahead, (0, 0, 0, 1))


def mean_prefixes(rows: Sequence[Mapping[str, Any]], spec: ValueSpec) -> float:
    """Return the mean number of trained prefixes of a response, at least 1.

    Args:
        rows: what `rows` returned.
        spec: the head decides which prefixes there are.
    """
    first = 0 if spec.head == "scalar" else 1
    total = 0
    for row in rows:
        own = row.get("targets") if spec.target == "monte-carlo" else None
        if own is None:
            total += len(row["response_ids"]) + 1 - first
        else:
            total += sum(target is not None for target in list(own)[first:])
    return max(1.0, total / max(1, len(rows)))

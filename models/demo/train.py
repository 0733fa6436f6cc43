"""Train the demo model on a CPU: train.py --minutes 30 --out model.pt (see README.md).

Training stops by the clock, or after --steps if that comes first; the learning rate falls
along whichever is further. A run that stops by the clock is not repeatable bit by bit, so the
released file is known by its SHA-256 and by the log that `--out` leaves beside it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from random import Random

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

from chatml import USER_WEIGHT, Example, read_examples
from network import Network, Shape
from optimizer import Muon

ADAM_RATE, MUON_RATE = 2e-3, 0.02
WARM_UP_STEPS = 50
FLAT_SHARE = 0.3  # of the run, before the learning rate begins to fall
LAST_RATE = 0.02  # of the full rate, at the end
SORTED_TOGETHER = 4096  # dialogues sorted by length at a time, to waste little on padding
REPORT_STEPS, SAVE_STEPS = 25, 200
HELD_OUT = 150  # dialogues, at most, for the figure in the log


def padded(examples: list[Example]) -> tuple[Tensor, Tensor]:
    """Return ids and weights as rectangles, filled up with zeros."""
    longest = max(len(example.ids) for example in examples)
    ids = torch.zeros(len(examples), longest, dtype=torch.long)
    weights = torch.zeros(len(examples), longest)
    for row, example in enumerate(examples):
        ids[row, : len(example.ids)] = torch.tensor(example.ids)
        weights[row, : len(example.weights)] = torch.tensor(example.weights)
    return ids, weights


def batches(examples: list[Example], tokens: int, rng: Random) -> Iterator[list[Example]]:
    """Yield batches of at most `tokens` padded tokens for ever, each pass in a new order."""
    while True:
        order = examples[:]
        rng.shuffle(order)
        for start in range(0, len(order), SORTED_TOGETHER):
            group = sorted(order[start : start + SORTED_TOGETHER], key=lambda e: len(e.ids))
            made: list[list[Example]] = [[]]
            for example in group:
                # Sorted, so the newest example is the longest of its batch.
                if made[-1] and len(example.ids) * (len(made[-1]) + 1) > tokens:
                    made.append([])
                made[-1].append(example)
            rng.shuffle(made)
            yield from made


def loss(network: Network, ids: Tensor, weights: Tensor) -> tuple[Tensor, float]:
    """Return the weighted mean of the cross entropy, and the sum of the weights."""
    hidden = network(ids[:, :-1]).flatten(0, 1)
    targets, weights = ids[:, 1:].flatten(), weights[:, 1:].flatten()
    counted = weights > 0
    logits = network.logits(hidden[counted])
    each = functional.cross_entropy(logits, targets[counted], reduction="none")
    total = weights.sum()
    return (each * weights[counted]).sum() / total, float(total)


class ThreadChooser:
    """Uses one thread or two, whichever is faster just now.

    Threads wait for each other at the end of every matrix product, so beside another busy
    process two can be slower than one.
    """

    PERIOD, TRIAL = 120, 3  # steps

    def __init__(self, most: int) -> None:
        self.counts = tuple(range(1, most + 1))
        self.speeds = dict.fromkeys(self.counts, 0.0)
        self.step = 0

    def next(self, tokens: int, seconds: float) -> None:
        """Take note of the last step and set the number of threads for the next."""
        trials = len(self.counts) * self.TRIAL
        at = self.step % self.PERIOD
        if at < trials:
            tried = self.counts[at // self.TRIAL]
            self.speeds[tried] = tokens / seconds if at % self.TRIAL else 0.0
        self.step += 1
        at = self.step % self.PERIOD
        best = max(self.counts, key=lambda count: self.speeds[count])
        torch.set_num_threads(self.counts[at // self.TRIAL] if at < trials else best)


@torch.no_grad()
def held_out_loss(network: Network, examples: list[Example]) -> float:
    """Return the mean loss in nats per token of the answers alone."""
    summed = count = 0.0
    for start in range(0, len(examples), 32):
        ids, weights = padded(examples[start : start + 32])
        mean, total = loss(network, ids, (weights > USER_WEIGHT).float())
        summed += mean.item() * total
        count += total
    return summed / count


def rate_share(progress: float, step: int) -> float:
    """Return the share of the full learning rate: warm-up, plateau, straight descent."""
    descent = max(LAST_RATE, (1 - progress) / (1 - FLAT_SHARE))
    return min(1.0, (step + 1) / WARM_UP_STEPS) * (1.0 if progress < FLAT_SHARE else descent)


def save(network: Network, path: Path) -> None:
    """Write weights and shape."""
    torch.save({"weights": network.state_dict(), "shape": asdict(network.shape)}, path)


def optimizers(network: Network) -> tuple[list[torch.optim.Optimizer], list[nn.Parameter]]:
    """Return AdamW and Muon, and the parameters whose gradients need clipping."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        hidden = parameter.dim() == 2 and not name.startswith("token_embd")
        (matrices if hidden else others).append(parameter)
    adam = torch.optim.AdamW(others, lr=ADAM_RATE, betas=(0.9, 0.98), weight_decay=0.0)
    return [adam, Muon(matrices, MUON_RATE)], others


def train(arguments: argparse.Namespace) -> None:
    """Run the training loop and save the network."""
    torch.manual_seed(arguments.seed)
    torch.set_num_threads(1)
    threads = ThreadChooser(arguments.threads)
    tokenizer = Tokenizer.from_file(str(arguments.tokenizer))
    examples = read_examples(arguments.dialogues, tokenizer, Random(arguments.seed))
    held_out = read_examples(arguments.held_out, tokenizer)[:HELD_OUT]
    network = Network(Shape())
    if arguments.start is not None:
        network.load_state_dict(torch.load(arguments.start, weights_only=True)["weights"])
    steppers, clipped = optimizers(network)
    full_rates = [stepper.param_groups[0]["lr"] for stepper in steppers]
    log = arguments.out.with_suffix(".log").open("w", encoding="utf-8")

    def report(text: str) -> None:
        print(text, flush=True)
        log.write(text + "\n")
        log.flush()

    report(f"dialogues {len(examples)} tokens {sum(len(e.ids) for e in examples)}")
    report(f"parameters {sum(p.numel() for p in network.parameters())} {asdict(network.shape)}")
    started = time.monotonic()
    tokens, step, smooth = 0, 0, 0.0
    for batch in batches(examples, arguments.batch_tokens, Random(arguments.seed)):
        seconds = time.monotonic() - started
        progress = max(seconds / (arguments.minutes * 60), step / arguments.steps)
        if progress >= 1:
            break
        for stepper, full in zip(steppers, full_rates, strict=True):
            stepper.param_groups[0]["lr"] = full * arguments.rate * rate_share(progress, step)
        ids, weights = padded(batch)
        value, _ = loss(network, ids, weights)
        value.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        nn.utils.clip_grad_norm_(clipped, 1.0)
        for stepper in steppers:
            stepper.step()
            stepper.zero_grad()
        tokens += ids.numel()
        step += 1
        smooth = value.item() if step == 1 else 0.98 * smooth + 0.02 * value.item()
        threads.next(ids.numel(), time.monotonic() - started - seconds)
        if step % REPORT_STEPS == 0:
            report(f"step {step} {seconds:.0f} s {tokens / 1e6:.2f} M tokens loss {smooth:.4f}")
        if step % SAVE_STEPS == 0:
            report(f"step {step} held-out {held_out_loss(network, held_out):.4f}")
            save(network, arguments.out)
    seconds = time.monotonic() - started
    final = held_out_loss(network, held_out)
    report(f"end: {step} steps, {tokens} tokens, {seconds:.0f} s, held-out {final:.4f}")
    save(network, arguments.out)


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dialogues", type=Path, default=Path("train.jsonl"))
    parser.add_argument("--held-out", type=Path, default=Path("held.jsonl"))
    parser.add_argument("--tokenizer", type=Path, default=Path("tokenizer.json"))
    parser.add_argument("--out", type=Path, default=Path("model.pt"))
    parser.add_argument("--start", type=Path, help="go on from this file")
    parser.add_argument("--rate", type=float, default=1.0, help="share of the usual learning rate")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--batch-tokens", type=int, default=3072)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())


if __name__ == "__main__":
    main()

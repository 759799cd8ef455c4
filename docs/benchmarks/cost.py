r"""Measure what curvature costs: time against one gradient pass over the same tokens, memory against a training step.

    python docs/benchmarks/cost.py --model sample_data/base --adapter sample_data/tuned --write
    python docs/benchmarks/cost.py --shape wide --rows 16 --batch-size 8 --only ekfac LoRA fisher --write cost-wide
    python docs/benchmarks/cost.py --shape half --dtype bfloat16 --rows 16 --batch-size 8 --only ekfac LoRA \
        --write cost-half
    python docs/benchmarks/cost.py --shape one --dtype bfloat16 --rows 16 --batch-size 4 --only ekfac LoRA \
        --rounds 1 --memory-repeats 1 --write cost-one

Times: every case is run once a round between two gradient passes and divided by their mean; the table gives the
median and the range of these ratios over the rounds. Memory: every case runs in a fresh process; its figure is the peak
of the resident set (pages of mapped files included) over what was resident before the case began, with the model
loaded. Freed memory goes back to the system, as in every command. Rows are random tokens of ragged lengths, as many as
the default fit of retain rows.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from saferestore.cli.memory import names_small_models, return_freed_memory
from saferestore.core.checkpoint.session import LiveModel
from saferestore.core.curvature.diagonal import diagonal_fisher
from saferestore.core.curvature.engines import ENGINES, EngineInputs
from saferestore.core.curvature.fisher import fisher, score_rows
from saferestore.core.curvature.ggn import GaussNewton
from saferestore.core.curvature.hessian import WAYS, Hessian
from saferestore.core.curvature.kfac import ekfac
from saferestore.core.data.batches import Batch, Row, make_batches
from saferestore.core.losses import Loss, answer_logits, cross_entropy, gradient, kl_divergence, log_probabilities
from saferestore.core.params import Params, gaussian
from saferestore.core.restoration.settings import Settings
from saferestore.core.restoration.trust_region import Problem, minimise
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

PRODUCTS = 20
ENGINE = Settings().engine
RESTORATION = f"restoration by `{ENGINE}`, 3 steps"


@dataclass(frozen=True)
class Bench:
    """What every case runs on."""

    live: LiveModel
    batches: Sequence[Batch]
    loss: Loss
    v: Params


SHAPES = {"small": (1024, 128, 384, 4, 4, 2), "wide": (32000, 896, 4864, 4, 14, 2),
          "half": (151936, 896, 4864, 24, 14, 2), "one": (128256, 2048, 8192, 16, 32, 8)}
"""Random Llamas: vocabulary, hidden and inner width, layers, heads, heads of keys. `half` has the shape of a model of
half a billion parameters (Qwen2.5-0.5B), `one` that of one billion (Llama 3.2 1B), `wide` the layers of `half`, but
four of them and a smaller vocabulary: sides of 896 and 4864 are longer than an EK-FAC engine keeps whole."""


def load(model: str | None, adapter: str | None, shape: str, dtype: torch.dtype) -> nn.Module:
    """The base with its adapter, or a random Llama of a shape with a random one; adapters are float32."""
    torch.manual_seed(0)
    if model is None:
        vocabulary, hidden, inner, layers, heads, keys = SHAPES[shape]
        base = LlamaForCausalLM(LlamaConfig(
            vocab_size=vocabulary, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
            num_attention_heads=heads, num_key_value_heads=keys, max_position_embeddings=256,
            tie_word_embeddings=shape != "small", attn_implementation="eager")).to(dtype)
    else:
        base = AutoModelForCausalLM.from_pretrained(model, attn_implementation="eager", dtype=dtype)
    if adapter is not None:
        return PeftModel.from_pretrained(base, adapter, is_trainable=True).eval()
    lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    return get_peft_model(base, lora).eval()


def bench(arguments: argparse.Namespace) -> Bench:
    """Model, random ragged rows and one vector."""
    model = load(arguments.model, arguments.adapter, arguments.shape, getattr(torch, arguments.dtype))
    leaves = {name: p for name, p in sorted(model.named_parameters()) if p.requires_grad}
    live = LiveModel(model, None, leaves, torch.device("cpu"))  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.get_base_model().config.vocab_size

    def tokens(low: int, high: int) -> tuple[int, ...]:
        count = int(torch.randint(low, high, (), generator=generator))
        return tuple(torch.randint(3, vocabulary, (count,), generator=generator).tolist())

    rows = [Row(i, tokens(16, 40), tokens(8, 40)) for i in range(arguments.rows)]
    batches = make_batches(rows, batch_size=arguments.batch_size, pad_id=0)
    return Bench(live, batches, cross_entropy("ce", batches), gaussian({n: p.detach() for n, p in leaves.items()}, 1))


def gradient_pass(b: Bench) -> None:
    """The unit: value and gradient of the loss over all rows."""
    gradient(b.live, b.loss)


def forward_pass(b: Bench) -> None:
    """One forward pass over all rows."""
    b.loss.value(b.live.model)


def own_loss(b: Bench, batch: Batch) -> Tensor:
    """The loss that transformers computes of labels."""
    return b.live.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels).loss


def plain_backward(b: Bench) -> None:
    """One pass of transformers' own loss and `backward`, as a training loop runs it."""
    for batch in b.batches:
        own_loss(b, batch).backward()
    b.live.model.zero_grad(set_to_none=True)


def score_pass(b: Bench) -> None:
    """Per-row gradients of all rows, each batch's thrown away."""
    for _ in score_rows(b.live, [b.loss], seed=0):
        pass


def products(keep_graph: bool, count: int) -> Callable[[Bench], None]:
    """`count` Gauss-Newton products from making the operator on."""
    def run(b: Bench) -> None:
        operator = GaussNewton(b.live, [b.loss], keep_graph=keep_graph)
        for _ in range(count):
            operator.matvec(b.v)
    return run


def hessian_products(way: str, count: int) -> Callable[[Bench], None]:
    """`count` Hessian products from making the operator on."""
    def run(b: Bench) -> None:
        operator = Hessian(b.live, [b.loss], way=way)
        for _ in range(count):
            operator.matvec(b.v)
    return run


@dataclass(frozen=True)
class Timing:
    """A row of the table of times; `parts` divides its time, `target` bounds its ratio."""

    what: str
    run: Callable[[Bench], object]
    parts: int = 1
    target: float | None = None


TIMINGS = (
    Timing("gradient pass (the unit)", gradient_pass),
    Timing("the same by transformers' loss and `backward`", plain_backward),
    Timing("forward pass", forward_pass),
    Timing("per-row scores of all rows", score_pass, target=1.3),
    Timing("`fisher` made: scores, Gram matrix, eigenvectors", lambda b: fisher(b.live, [b.loss], seed=0), target=1.3),
    Timing("`fisher` made with R on disk", lambda b: fisher(b.live, [b.loss], seed=0, on_disk=True)),
    Timing("`ekfac` made: factors, their eigenvectors, eigenvalues", lambda b: ekfac(b.live, [b.loss], seed=0)),
    Timing("`ekfac` made with shorter sides (low memory)",
           lambda b: ENGINES["ekfac"].make(EngineInputs(b.live, [b.loss], 0, True, 8, None, deque()))),
    Timing("`diagonal` made", lambda b: diagonal_fisher(b.live, [b.loss], seed=0)),
    Timing(f"Gauss-Newton product, graph kept over {PRODUCTS}", products(True, PRODUCTS), PRODUCTS, 1.2),
    Timing("Gauss-Newton product, graph rebuilt", products(False, 2), 2),
    Timing(f"Hessian product, graph kept over {PRODUCTS}", hessian_products("kept", PRODUCTS), PRODUCTS, 1.5),
    Timing("Hessian product, graph rebuilt", hessian_products("rebuilt", 2), 2),
    Timing("Hessian product, forward over reverse", hessian_products("forward", 2), 2),
    Timing("Hessian product, difference of gradients (low memory)", hessian_products("difference", 2), 2, 2.7),
)


def asked(what: str, only: Sequence[str]) -> bool:
    """Tell whether a row is wanted."""
    return not only or any(part in what for part in only)


def seconds(run: Callable[[Bench], object], b: Bench) -> float:
    """Wall time of one run."""
    begin = time.perf_counter()
    run(b)
    return time.perf_counter() - begin


def measure_times(b: Bench, rounds: int, only: Sequence[str]) -> list[dict[str, object]]:
    """Median time of every case, and its ratio to the gradient passes before and after it: median and range."""
    rows = []
    for timing in [timing for timing in TIMINGS if asked(timing.what, only) or timing is TIMINGS[0]]:
        timing.run(b)  # once for what torch prepares at first use
        times, ratios = [], []
        before = seconds(gradient_pass, b)
        for _ in range(rounds):
            times.append(seconds(timing.run, b) / timing.parts)
            after = seconds(gradient_pass, b)
            ratios.append(times[-1] / ((before + after) / 2))
            before = after
        print(f"{timing.what}: {statistics.median(ratios):.2f}", file=sys.stderr)
        rows.append({"what": timing.what, "seconds": statistics.median(times), "ratio": statistics.median(ratios),
                     "low": min(ratios), "high": max(ratios), "target": timing.target})
    return rows


def training_step(b: Bench) -> None:
    """Forward, backward and AdamW on the first (longest) batch."""
    optimiser = torch.optim.AdamW(b.live.leaves.values())
    batch = b.batches[0]
    own_loss(b, batch).backward()
    optimiser.step()


def solve_with(engine: str, low_memory: bool) -> Callable[[Bench], None]:
    """Make an engine from nothing, as a run does, and solve once with it."""
    def run(b: Bench) -> None:
        row = ENGINES[engine]
        diagonal = diagonal_fisher(b.live, [b.loss], seed=0) if row.needs_diagonal else None
        operator = row.make(EngineInputs(b.live, [b.loss], 0, low_memory, 8, diagonal, deque()))
        _, slope = gradient(b.live, b.loss)
        operator.solve(slope, 0.1 * (operator.mean_diagonal or 1.0))
    return run


def restoration(low_memory: bool) -> Callable[[Bench], None]:
    """Three steps of the whole minimiser with the default engine, the tuned model's distributions cached."""
    def run(b: Bench) -> None:
        kept = log_probabilities(b.live.model, b.batches, on_disk=low_memory)
        drift = kl_divergence("D", b.batches, kept.__getitem__)
        anchor = cross_entropy("anchor", b.batches[: len(b.batches) // 2], target=0.0)
        minimise(Problem(b.live, (anchor,), drift), Settings(ENGINE, max_steps=3, low_memory=low_memory))
    return run


MEMORY: dict[str, Callable[[Bench], object]] = {
    "one LoRA training step (AdamW)": training_step,
    "gradient pass": gradient_pass,
    "forward pass": forward_pass,
    "logits of the longest batch": lambda b: answer_logits(b.live.model, b.batches[0]),
    **{f"Hessian product, {way}": hessian_products(way, 1) for way in WAYS},
    **{f"`{engine}`, {'low' if low else 'ordinary'} memory": solve_with(engine, low)
       for engine in ENGINES for low in (True, False)},
    **{f"{RESTORATION}, {'low' if low else 'ordinary'} memory": restoration(low) for low in (True, False)},
}


def resident() -> dict[str, int]:
    """Bytes of the resident set now (VmRSS), its anonymous part (RssAnon) and its peak (VmHWM)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    fields = (line.split() for line in lines if line.startswith(("VmRSS", "VmHWM", "RssAnon")))
    return {name.rstrip(":"): int(value) * 1024 for name, value, *_ in fields}


def peak_of(arguments: argparse.Namespace) -> int:
    """Peak resident bytes of one case over what was resident before it."""
    b = bench(arguments)
    forward_pass(Bench(b.live, b.batches[-1:], cross_entropy("warm", b.batches[-1:]), b.v))  # lazy parts of torch
    before = resident()["VmRSS"]
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # sets VmHWM back to now
    MEMORY[arguments.case](b)
    return resident()["VmHWM"] - before


def measure_memory(arguments: argparse.Namespace) -> list[dict[str, object]]:
    """Every case in a process of its own, as often as there are memory repeats; medians."""
    rows = []
    for case in [case for case in MEMORY if asked(case, arguments.only) or MEMORY[case] is training_step]:
        command = [sys.executable, __file__, "--case", case, "--rows", str(arguments.rows),
                   "--batch-size", str(arguments.batch_size), "--threads", str(arguments.threads),
                   "--shape", arguments.shape, "--dtype", arguments.dtype]
        for flag in ("model", "adapter"):
            command += [f"--{flag}", value] if (value := getattr(arguments, flag)) else []
        peaks = [int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])
                 for _ in range(arguments.memory_repeats)]
        print(f"{case}: {statistics.median(peaks) / 2**20:.0f} MiB", file=sys.stderr)
        rows.append({"what": case, "bytes": statistics.median(peaks), "low": min(peaks), "high": max(peaks)})
    return rows


def described(arguments: argparse.Namespace, b: Bench) -> list[str]:
    """Where, with what and on what this was measured."""
    cpu = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
                if line.startswith("model name")), platform.processor())
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    size = sum(p.numel() for p in b.live.model.parameters())
    trained = sum(p.numel() for p in b.live.leaves.values())
    tokens = int(sum(batch.attention_mask.sum() for batch in b.batches))
    return [
        f"- Machine: {cpu}, {arguments.threads} of {os.cpu_count()} cores used, {platform.system()}; Python "
        f"{platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}; "
        f"weights {arguments.dtype}, adapter float32.",
        f"- Commit: {commit.stdout.strip()}. Command: `python docs/benchmarks/cost.py {' '.join(sys.argv[1:])}`.",
        f"- Model: {arguments.model or f'random Llama, {arguments.shape}'}, {size:,} parameters of which {trained:,} "
        "are adapter.",
        f"- Rows: {arguments.rows} of 24 to 79 random tokens, {tokens:,} tokens, "
        f"{sum(batch.answer_tokens for batch in b.batches):,} of them answers; batches of {arguments.batch_size}.",
    ]


def verdict(value: float, target: float | None) -> str:
    """The target and whether it is met."""
    return "" if target is None else f"{target} {'met' if value <= target else 'MISSED'}"


def page(facts: list[str], times: list[dict], memory: list[dict], rounds: int) -> str:
    """The Markdown page."""
    step = memory[0]["bytes"]
    lines = ["# What curvature costs", "", "Written by `cost.py` beside this file; its docstring says how.", "", *facts,
             "", "## Time", "", f"Ratios to one gradient pass over the same tokens, {rounds} rounds.", "",
             "| what | seconds | ratio | range | target |", "| --- | --- | --- | --- | --- |"]
    lines += [f"| {r['what']} | {r['seconds']:.3f} | {r['ratio']:.2f} | {r['low']:.2f}-{r['high']:.2f} | "
              f"{verdict(r['ratio'], r['target'])} |" for r in times]
    lines += ["", "## Memory", "", "Peak over what was resident before, median and range of several processes (the "
              "allocator takes more or less at a time); an engine is made and solves once.", "",
              "| what | MiB | range | ratio to the training step | target |", "| --- | --- | --- | --- | --- |"]
    bound = ("`fisher`, low memory", f"`{ENGINE}`, low memory", f"{RESTORATION}, low memory")
    lines += [f"| {r['what']} | {r['bytes'] / 2**20:.0f} | {r['low'] / 2**20:.0f}-{r['high'] / 2**20:.0f} | "
              f"{r['bytes'] / step:.2f} | "
              f"{verdict(r['bytes'] / step, 1.5 if r['what'] in bound else None)} |" for r in memory]
    return "\n".join(lines) + "\n"


def parsed() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="directory of the base model (default: a random Llama)")
    parser.add_argument("--adapter", help="directory of its LoRA adapter (default: a random one on all linear maps)")
    parser.add_argument("--shape", choices=list(SHAPES), default="small", help="of the random Llama")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the base's weights")
    parser.add_argument("--only", nargs="*", default=[], metavar="PART", help="rows with one of these in their name")
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--memory-repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", nargs="?", const="cost", metavar="NAME",
                        help="write NAME.md and NAME.json [cost] beside this script")
    parser.add_argument("--case", choices=list(MEMORY), help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure, print, and write where asked."""
    arguments = parsed()
    torch.set_num_threads(arguments.threads)
    if not names_small_models([arguments.model or ""]):
        return_freed_memory()  # as the command line does
    if arguments.case:
        print(peak_of(arguments))
        return
    b = bench(arguments)
    facts, times = described(arguments, b), measure_times(b, arguments.rounds, arguments.only)
    memory = measure_memory(arguments)
    text = page(facts, times, memory, arguments.rounds)
    print(text)
    if arguments.write:
        here = Path(__file__).with_stem(arguments.write)
        here.with_suffix(".md").write_text(text, encoding="utf-8")
        here.with_suffix(".json").write_text(json.dumps({"facts": facts, "times": times, "memory": memory}, indent=1),
                                             encoding="utf-8")


if __name__ == "__main__":
    main()

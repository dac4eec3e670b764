"""Is the governor as fast as the best fixed number of draft tokens, and never slower than no speculation?

`python tests/benchmarks/speculation.py --json`: the bundled models through the whole system (Ray, gRPC, emulated link),
and, where the traces are, models of real size on a simulated clock (`speculation_simulated.py`).
Engine: of each family the best fixed γ is chosen on some of the prompts and compared on the others. A pair is one
prompt, generated with every setting in an order drawn anew. Prompts differ by more than timings do (`spread` is of
both), so there are many rather than several runs of each. Texts of earlier requests are not looked up, or a prompt's
second run would find its first. Every second prompt is sampled (temperature 0.7, top-p 0.95), the others greedy.

Keys: `governor_vs_best_fixed`, `governor_vs_none`: ratios of decoding speed (tokens after the first a second), lower
end of the 95 % confidence interval of the geometric mean over pairs, of the family where it is lowest, simulated ones
included; `engine_` and `simulated_` keys are those of each part alone. `acceptance`: by kind of draft and position,
given that the positions before stood. `self_draft_demand_recall`: share of the experts of verification windows (9
tokens) that the self-draft before them wanted too, half of the experts resident; `_by_gamma`: of shorter ones too.
`self_draft_extra_weight_bytes`: tensors that exist for the self-draft alone.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import random
import statistics
import subprocess
import sys
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

from intervals import interval, worst
from speculation_families import families

# The benchmark of our kernels, beside this file, has the name of a package that transformers would import.
sys.path.remove(str(Path(__file__).parent))

import torch

import moespac
from moespac import Client
from moespac.actors.core import DRAFT_KINDS
from moespac.actors.gpu_device.drafts.resident import ResidentDraft
from moespac.actors.gpu_device.staging import MOST_BUFFERS
from moespac.actors.gpu_device.trunk import load_trunk
from moespac.cluster.client import GenerationStatistics
from moespac.cluster.serve import Service, with_port
from moespac.configs import DraftConfig, load_deployment

QUICKSTART = Path(moespac.__file__).parent / "configs" / "quickstart" / "deployment.yaml"
FIXED = (0, 2, 4, 8)
"""Draft tokens a step that the governor is compared with; it chooses there too which draft proposes them."""
GOVERNOR = None
SAMPLED = {"temperature": 0.7, "top_p": 0.95}
RECALL_GAMMA, RECALL_GAMMAS = 8, (2, 4)
"""Draft tokens a step where kinds are measured alone; others for which the recall is reported too."""
DRAFT_TOKENS = 192
"""Generated per request there: the more, the fewer windows are cut short by a request's end."""
EXPERT_BYTES = 96 * 2**10
"""Of the bundled target."""
PARTS = ("simulated", "engine", "drafts")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--pairs", type=int, default=24, help="prompts of a family that are compared")
    parser.add_argument("--choose", type=int, default=6, help="prompts of a family that choose")
    parser.add_argument("--tokens", type=int, default=96, help="generated per request that is compared")
    parser.add_argument("--only", choices=PARTS, help="this part alone")
    parser.add_argument("--families", nargs="*", help="the engine's families, by name; default: all")
    options = parser.parse_args()
    parts = (options.only,) if options.only else PARTS
    result: dict[str, object] = {}
    if "simulated" in parts:
        result |= simulated()
    if "engine" in parts or "drafts" in parts:
        prompts = families(options.choose + options.pairs)
        prompts = {name: texts for name, texts in prompts.items() if name in (options.families or prompts)}
        result["families"] = list(prompts)
        if "engine" in parts:
            result |= compare(prompts, options.choose, options.tokens)
        if "drafts" in parts:
            result |= drafts(prompts, DRAFT_TOKENS) | {"self_draft_extra_weight_bytes": extra_weight_bytes()}
    for key in ("governor_vs_best_fixed", "governor_vs_none"):
        found = [result[f"{part}_{key}"] for part in PARTS if f"{part}_{key}" in result]
        if found:
            result = {key: min(found)} | result
    print(json.dumps(result) if options.json else json.dumps(result, indent=2))


def simulated() -> dict[str, object]:
    """The simulator's part, in a process of its own; where there are no traces, a line that says so instead of keys."""
    program = [sys.executable, str(Path(__file__).with_name("speculation_simulated.py")), "--json"]
    lines = subprocess.run(program, check=True, stdout=subprocess.PIPE, text=True, env=os.environ).stdout.splitlines()
    print(*lines[:-1], sep="\n", flush=True)
    return json.loads(lines[-1]) or {"simulated": "not measured: the traces are not there"}


@contextmanager
def served(name: str, draft: DraftConfig, **gpu):
    """A client of the quickstart's deployment with that draft section; `gpu`: fields of its device to change."""
    deployment = with_port(load_deployment(QUICKSTART), 0)
    devices = tuple(d.model_copy(update=gpu) if d.kind == "gpu" else d for d in deployment.devices)
    deployment = deployment.model_copy(update={"name": name, "draft": draft, "devices": devices})
    with Service(deployment) as service, Client(service.server) as client:
        client.wait_ready(300)
        yield client


def compare(prompts: dict[str, list[str]], choose: int, tokens: int) -> dict[str, object]:
    """Decoding speed with the governor, without drafts and with the best fixed γ."""
    chance, report, asked = random.Random(0), {}, Counter()
    with served("speculation", DraftConfig(ngram_memory=0)) as client:

        def speed(prompt: str, number: int, gamma: int | None) -> float:
            """Logarithm of tokens a second."""
            options = SAMPLED | {"seed": number} if number % 2 else {}
            generation = client.generate(prompt, max_tokens=tokens, ignore_eos=True, gamma=gamma, **options)
            for _ in generation:
                pass
            if gamma is GOVERNOR:
                asked.update({d.kind: d.steps for d in generation.statistics.drafts})
                asked["none"] += generation.statistics.steps - sum(d.steps for d in generation.statistics.drafts)
            return -math.log(generation.statistics.tpot_s)

        def interleaved(prompt: str, number: int, settings: tuple) -> dict[int | None, float]:
            return {gamma: speed(prompt, number, gamma) for gamma in chance.sample(settings, len(settings))}

        for texts in prompts.values():
            speed(texts[0], 0, GOVERNOR)  # slots, caches and compilers are warm, the governor has seen text
        for name, texts in prompts.items():
            first = [interleaved(text, i, FIXED) for i, text in enumerate(texts[:choose])]
            best = max(FIXED, key=lambda gamma: sum(run[gamma] for run in first))
            settings = tuple(dict.fromkeys((GOVERNOR, 0, best)))
            second = [interleaved(text, i, settings) for i, text in enumerate(texts[choose:], choose)]
            report[name] = {
                "best_fixed": best,
                "tokens_per_s": {
                    "governor" if gamma is GOVERNOR else str(gamma): round(
                        math.exp(statistics.mean(run[gamma] for run in second)), 1
                    )
                    for gamma in settings
                },
                "vs_best_fixed": interval([run[GOVERNOR] - run[best] for run in second]),
                "vs_none": interval([run[GOVERNOR] - run[0] for run in second]),
            }
            print(name, report[name], flush=True)
    return {
        "engine_governor_vs_best_fixed": worst(report, "vs_best_fixed"),
        "engine_governor_vs_none": worst(report, "vs_none"),
        "by_family": report,
        "governor_steps": dict(asked),
    }


def drafts(prompts: dict[str, list[str]], tokens: int) -> dict[str, object]:
    """Acceptance of each kind by position, and how well the self-draft foresees demand; half of the experts fit."""
    texts = [(i, text) for family in prompts.values() for i, text in enumerate(family[:4])]
    acceptance, result = {}, {}
    # The deployment's slots are a quarter of the experts; those that staging takes come on top of a half.
    memory = 2 * load_deployment(QUICKSTART).gpu.expert_memory + MOST_BUFFERS * EXPERT_BYTES
    for kind in DRAFT_KINDS:
        draft = DraftConfig(kinds=(kind,), gamma=RECALL_GAMMA, ngram_memory=0)
        with served(f"speculation-{kind}", draft, expert_memory=memory) as client:
            for text in texts[:6]:
                _finished(client, text, tokens)  # plans fill the slots
            done = [_finished(client, text, tokens) for text in texts]
            if kind == "self":
                device, recall = client.status().device, {RECALL_GAMMA: _recall(done)}
                for gamma in RECALL_GAMMAS:
                    recall[gamma] = _recall([_finished(client, text, tokens, gamma) for text in texts])
                experts = len(device.model.layer_ids) * device.model.n_experts
                result = {
                    "self_draft_residency": round(len(device.resident) / experts, 3),
                    "self_draft_demand_recall": recall[RECALL_GAMMA],
                    "self_draft_demand_recall_by_gamma": {str(gamma): recall[gamma] for gamma in sorted(recall)},
                }
        counted = [d for s in done for d in s.drafts]
        proposed = [sum(d.proposed[i] for d in counted if i < len(d.proposed)) for i in range(RECALL_GAMMA)]
        accepted = [sum(d.accepted[i] for d in counted if i < len(d.accepted)) for i in range(RECALL_GAMMA)]
        # A position counts where all before it stood: of a chain the rest is not looked at.
        tried = [proposed[0], *(min(a, p) for a, p in zip(accepted, proposed[1:], strict=False))]
        acceptance[kind] = [round(a / t, 3) if t else None for a, t in zip(accepted, tried, strict=True)]
    return {"acceptance": acceptance} | result


def _recall(done: list[GenerationStatistics]) -> float:
    return round(sum(s.demand_predicted for s in done) / sum(s.demand for s in done), 4)


def _finished(
    client: Client, numbered: tuple[int, str], tokens: int, gamma: int | None = RECALL_GAMMA
) -> GenerationStatistics:
    number, text = numbered
    options = SAMPLED | {"seed": number} if number % 2 else {}
    generation = client.generate(text, max_tokens=tokens, ignore_eos=True, gamma=gamma, **options)
    for _ in generation:
        pass
    return generation.statistics


def extra_weight_bytes() -> int:
    """Bytes of the tensors that come into being with a self-draft."""
    target = load_trunk(QUICKSTART.parent / "target", torch.float32, torch.device("cpu"))
    before = _tensor_bytes()
    draft = ResidentDraft(target, None)
    extra = _tensor_bytes() - before
    del draft
    return extra


def _tensor_bytes() -> int:
    gc.collect()
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in _tensors()}
    return sum(storages.values())


def _tensors() -> list[torch.Tensor]:
    return [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]


if __name__ == "__main__":
    main()

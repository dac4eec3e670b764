"""The training script of the bundled pair: split, tokenizer, resuming, and the evaluation's figures."""

import argparse as library_text
import dataclasses
import inspect
import lzma
from functools import partial
from pathlib import Path

import pytest
import torch

from moespac.configs.quickstart.training import acceptance, evaluate, metrics, train
from moespac.configs.quickstart.training.batches import Batches
from moespac.configs.quickstart.training.data import load, read_text, split
from moespac.configs.quickstart.training.loop import Recipe, run
from moespac.configs.quickstart.training.losses import balance_losses, distillation_loss, target_loss
from moespac.configs.quickstart.training.models import build, draft_config, export, start_draft, target_config
from moespac.configs.quickstart.training.tokenizer import encode, load_tokenizer, train_tokenizer

TEXT = inspect.getsource(library_text)
TINY = {"num_hidden_layers": 2, "hidden_size": 32, "vocab_size": 512, "head_dim": 8}
TINY_MOE = TINY | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([TEXT], vocabulary=512)


@pytest.fixture(scope="module")
def streams(tokenizer):
    return (encode(tokenizer, [TEXT]), encode(tokenizer, [TEXT[: len(TEXT) // 2]]))


def test_a_split_is_the_text_again_and_holds_out_two_per_cent():
    text = "".join(f"line {number} of the text\n" for number in range(60_000))
    train, held_out = split(text)
    pieces = [piece for pair in zip(train, [*held_out, ""], strict=True) for piece in pair]
    assert "".join(pieces) == text
    assert len(held_out) > 1
    assert 0.015 < sum(map(len, held_out)) / len(text) < 0.025
    assert not set("".join(train).splitlines()) & set("".join(held_out).splitlines())


def test_a_held_out_paragraph_is_not_trained_on_in_another_edition(tmp_path: Path):
    paragraphs = [f"Paragraph {number}: " + f"word{number} " * 60 for number in range(2_000)]
    (tmp_path / "one.txt").write_text("\n\n".join(paragraphs))
    with lzma.open(tmp_path / "two.txt.xz", "wt") as file:
        file.write("\n\n".join(reversed([p.replace(" ", "\n", 3) for p in paragraphs])))
    corpora = load([tmp_path / "one.txt", tmp_path / "two.txt.xz"])

    def words(pieces):
        return {" ".join(p.split()) for piece in pieces for p in piece.split("\n\n") if len(p) > 300}

    for corpus in corpora:
        assert words(corpus.held_out)
        for other in corpora:
            assert not words(corpus.held_out) & words(other.train)


def test_unreadable_text_is_named(tmp_path: Path):
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=r"empty\.txt: the file holds no text"):
        read_text(tmp_path / "empty.txt")
    with pytest.raises(ValueError, match=r"latin\.txt: not UTF-8"):
        read_text(tmp_path / "latin.txt")


@pytest.mark.parametrize("text", [TEXT, "  two  spaces\t\r\n\n", "naïve 漢字 🙂 \x00\x7f", "", "don't  , . ! ' s"])
def test_tokenizer_round_trips(tokenizer, tmp_path: Path, text: str):
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path)
    ids = again.encode(text, add_special_tokens=False)
    assert again.decode(ids) == text
    assert ids == tokenizer.encode(text, add_special_tokens=False)
    assert again.eos_token_id == again.pad_token_id == 0
    assert len(again) == 512


def test_an_epoch_visits_each_place_once(streams):
    batches = Batches(streams[:1], rows=1, length=64, seed=3)
    places = (len(streams[0]) - 65) // 64
    seen = {tuple(batches.batch(step)[0].tolist()) for step in range(places)}
    assert len(seen) == places
    assert batches.batch(0).shape == (1, 65)
    assert torch.equal(batches.batch(5), Batches(streams[:1], 1, 64, 3).batch(5))
    assert not torch.equal(batches.batch(5), Batches(streams[:1], 1, 64, 4).batch(5))


@pytest.mark.parametrize("role", ["target", "draft"])
def test_a_resumed_run_gives_the_same_bits(streams, tmp_path: Path, role: str):
    recipe = Recipe(tokens=10 * 128, learning_rate=1e-2, step_tokens=128, length=32, long_length=64)
    target = build(target_config(**TINY_MOE), seed=5)

    def train(name: str, stops: list[int | None]) -> dict[str, torch.Tensor]:
        for stop in stops:
            if role == "target":
                model = build(target_config(**TINY_MOE), seed=1)
                loss_of = partial(target_loss, model)
            else:
                model = build(draft_config(**TINY, intermediate_size=32), seed=1)
                loss_of = partial(distillation_loss, model, target)
            run(model, loss_of, streams, recipe, tmp_path / f"{name}.pt", workers=2, stop_after=stop)
        return model.state_dict()

    whole, resumed = train("whole", [None]), train("resumed", [3, 7, None])
    start = build(target_config(**TINY_MOE) if role == "target" else draft_config(**TINY, intermediate_size=32), 1)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert any(not torch.equal(whole[name], tensor) for name, tensor in start.state_dict().items())


def test_a_draft_starts_from_its_target(tokenizer, tmp_path: Path):
    target = build(target_config(**(TINY_MOE | {"num_hidden_layers": 5})), seed=1)
    draft = build(draft_config(**(TINY | {"num_hidden_layers": 3}), intermediate_size=32), seed=2)
    copied = start_draft(draft, target)
    assert "model.embed_tokens.weight" in copied and not any("mlp" in name for name in copied)
    ours, theirs = draft.model.layers[2].self_attn.q_proj.weight, target.model.layers[4].self_attn.q_proj.weight
    assert torch.equal(ours, theirs)
    export(draft, tokenizer, tmp_path)
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= {
        path.name for path in tmp_path.iterdir()
    }
    assert draft.dtype == torch.float32, "exporting stores bfloat16 but leaves the model as it is"


def test_balance_is_counted_layer_by_layer():
    even = torch.zeros(8, 4) + torch.eye(4).repeat(2, 1)
    crowded = torch.tensor([9.0, 0.0, 0.0, 0.0]).expand(8, 4).clone().requires_grad_()
    balance, starved = balance_losses((even,), 1)
    assert (balance.item(), starved.item()) == (pytest.approx(1.0), 0.0)
    balance, starved = balance_losses((crowded, even), 1)
    assert balance.item() > 4.5
    (pull,) = torch.autograd.grad(starved, crowded)
    assert (pull[:, 1:] < 0).all() and (pull[:, 0] > 0).all(), "descent raises the experts that were never chosen"


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (tuple(range(200)), False),
        ((*range(50), *[7] * 24, *range(50)), True),
        ((*range(50), *[7] * 23, *range(50)), False),
        (tuple(range(100)) + tuple(range(10)) * 3, True),
        (tuple(range(100)) + tuple(range(10)) * 2, False),
        (tuple(range(33)) * 4, False),
        ((), False),
    ],
)
def test_loop_detector(tokens: tuple[int, ...], expected: bool):
    assert acceptance.loops(tokens) is expected


def test_speculation_says_what_the_target_says():
    varied = {"initializer_range": 0.4}  # else tied embeddings make every model repeat its last token
    target = build(target_config(**TINY_MOE, **varied), seed=1).eval()
    draft = build(draft_config(**TINY, **varied, intermediate_size=32), seed=2).eval()
    draft.model.embed_tokens.weight.data.copy_(target.model.embed_tokens.weight)
    prompt = [5, 17, 300, 44]
    expected = target.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False, eos_token_id=511)
    for pair_draft, all_accepted in ((draft, False), (target, True)):
        made = acceptance.speculate(target, pair_draft, prompt, 4, 20, end=511)
        assert list(made.tokens) == expected[0, 4:].tolist()
        assert (set(made.accepted) == {4}) is all_accepted


def test_acceptance_leaves_looping_generations_out():
    kept = acceptance.Generation(tuple(range(12)), (4, 1, 0))
    looping = acceptance.Generation((1,) * 40, (4,) * 8)
    figures = acceptance.summarise([kept, looping], gamma=4)
    assert (figures.generations, figures.looping, figures.steps) == (1, 1, 3)
    assert figures.by_position == pytest.approx((2 / 3, 1 / 3, 1 / 3, 1 / 3))
    assert figures.rate == pytest.approx(5 / 12)
    assert figures.tokens_per_step == pytest.approx(8 / 3)
    with pytest.raises(ValueError, match="loop"):
        acceptance.summarise([looping], gamma=4)


def test_expert_use_is_counted():
    chosen = torch.tensor([[[0, 1]], [[1, 2]], [[1, 2]], [[3, 0]]])  # [tokens, layers, top_k]
    assert metrics.shared_share(chosen)[:, 0].tolist() == [0.5, 1.0, 0.0]
    assert metrics.distinct_experts(chosen, experts=4, run=2)[:, 0].tolist() == [3.0, 4.0]
    assert metrics.least_choices([chosen], experts=4, tokens=4) == 1
    assert metrics.least_choices([chosen], experts=5, tokens=4) == 0
    with pytest.raises(ValueError, match="counted over 10"):
        metrics.least_choices([chosen], experts=4, tokens=10)


@pytest.mark.parametrize(
    ("change", "unmet"),
    [
        ({}, []),
        ({"bits_per_byte": 1.91}, ["bits per byte above 1.9"]),
        ({"least_choices": 0}, ["an expert is never chosen in 10,000 tokens"]),
        ({"agreement": 0.59}, ["greedy agreement below 0.6"]),
    ],
)
def test_requirements(change: dict, unmet: list[str]):
    figures = metrics.TextFigures(
        tokens=1, bytes=1, bits_per_byte=1.9, agreement=0.6, least_choices=1, shared_by_neighbours=0.3, distinct={}
    )
    assert evaluate.unmet(dataclasses.replace(figures, **change)) == unmet


@pytest.mark.parametrize("module", ["train", "evaluate"])
def test_a_missing_file_is_named(module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    arguments = {
        "train": ["target", "--text", "absent.txt", "--work", "w", "--out", "o"],
        "evaluate": ["--target", "absent", "--draft", "absent", "--text", "absent.txt"],
    }[module]
    monkeypatch.setattr("sys.argv", [module, *arguments])
    with pytest.raises(SystemExit) as exit_:
        {"train": train, "evaluate": evaluate}[module].main()
    assert exit_.value.code == 2
    assert "absent" in capsys.readouterr().err

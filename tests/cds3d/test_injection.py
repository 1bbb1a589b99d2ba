"""Which layers a baseline injects into, what it changes there, and the token mapping of Prompt-to-Prompt."""

import pytest
import torch
from diffusers import UNet2DConditionModel

from cds3d.baselines.injection import (
    attention_layers,
    cross_maps_replaced,
    injected,
    pnp_layers,
    rows_copied,
    self_maps_copied,
)
from cds3d.baselines.sampling import noises
from cds3d.baselines.tokens import by_alignment, by_words, token_mapping
from cds3d.guidance import load_prior
from tensorf.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tiny(tiny_folder):
    return load_prior(str(tiny_folder), device=CPU)


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


def unet_on_meta(**config):
    """Layers without weights."""
    with torch.device("meta"):
        return UNet2DConditionModel(**config)


# --- layers


def test_the_rule_gives_the_published_layers_on_stable_diffusion():
    sd14 = unet_on_meta(
        sample_size=64,
        block_out_channels=(320, 640, 1280, 1280),
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        layers_per_block=2,
        attention_head_dim=8,
        cross_attention_dim=768,
    )
    layers = pnp_layers(sd14)
    assert layers.features == ("up_blocks.1.resnets.1.conv2",)
    published = {1: [1, 2], 2: [0, 1, 2], 3: [0, 1, 2]}
    assert layers.attention == tuple(
        f"up_blocks.{block}.attentions.{i}.transformer_blocks.0.attn1"
        for block, places in published.items()
        for i in places
    )


def test_the_rule_on_pocket_and_on_a_model_with_one_layer_a_block():
    pocket = pnp_layers(load_prior("pocket", device=CPU).unet)
    assert pocket.features == ("up_blocks.0.resnets.1.conv2",)
    places = [name.removesuffix(".transformer_blocks.0.attn1") for name in pocket.attention]
    assert places == [f"up_blocks.{p}" for p in ("0.attentions.1", "1.attentions.0", "1.attentions.1")]
    small = unet_on_meta(
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=8,
    )
    del small.up_blocks[0].resnets[1], small.up_blocks[0].attentions[1]
    assert pnp_layers(small).features == ("up_blocks.0.resnets.0.conv2",)
    assert [name.split(".")[3] for name in pnp_layers(small).attention] == ["0"]


def test_a_model_without_attention_on_the_way_up_is_told():
    plain = unet_on_meta(
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        norm_num_groups=8,
    )
    with pytest.raises(UserError, match="attention in its up-sampling blocks"):
        pnp_layers(plain)


# --- what is changed


def rows_of(prior, count=3):
    generator = torch.Generator().manual_seed(1)
    prompts = [prior.embed(text) for text in ("a yellow flower", "", "a red flower")]
    return [(torch.randn((1, 4, 6, 8), generator=generator), prompt) for prompt in prompts[:count]]


def taken_over(prior, context):
    """Names of the modules whose outputs are row 0's in all rows, among those that injection could change."""
    seen, handles = {}, []
    with context:
        for name, module in prior.unet.named_modules():
            if name.endswith((".conv2", ".to_q", ".to_k", ".to_v", ".to_out.0", ".conv1", ".proj_out")):
                keep = lambda _m, _i, out, name=name: seen.__setitem__(name, out)  # noqa: E731
                handles.append(module.register_forward_hook(keep))
        noises(prior, 600, *rows_of(prior))
    for handle in handles:
        handle.remove()
    return {name for name, out in seen.items() if torch.equal(out, out[[0, 0, 0]])}


@pytest.mark.parametrize(("features", "attention"), [(True, True), (True, False), (False, True), (False, False)])
def test_injection_changes_the_stated_layers_alone(tiny, features, attention):
    layers = pnp_layers(tiny.unet)
    stated = set(layers.features) if features else set()
    if attention:
        stated |= {f"{name}.{part}" for name in layers.attention for part in ("to_q", "to_k")}
    context = injected(tiny.unet, layers, (0, 0, 0), features=features, attention=attention)
    assert taken_over(tiny, context) == stated


def test_self_maps_are_taken_where_there_are_few_queries(tiny):
    layers = attention_layers(tiny.unet, "attn1")
    small = {f"{name}.{part}" for name in layers for part in ("to_q", "to_k")}
    small = {n for n in small if n.startswith(("mid_block", "down_blocks.1", "up_blocks.0"))}  # 3x4; others are 6x8
    assert len(layers) == 7 and len(small) == 8
    assert taken_over(tiny, self_maps_copied(tiny.unet, layers, (0, 0, 0), 12)) == small
    assert taken_over(tiny, self_maps_copied(tiny.unet, layers, (0, 0, 0), 11)) == set()


def test_hooks_are_gone_afterwards_and_a_wrong_batch_is_told(tiny):
    before = noises(tiny, 600, *rows_of(tiny))
    layers = pnp_layers(tiny.unet)
    with injected(tiny.unet, layers, (0, 1, 0), features=True, attention=True):
        during = noises(tiny, 600, *rows_of(tiny))
        with pytest.raises(RuntimeError, match="a batch of 2 rows came where 3 were expected"):
            noises(tiny, 600, *rows_of(tiny, 2))
    with pytest.raises(ZeroDivisionError), rows_copied(tiny.unet, layers.features, (0, 0, 0)):
        _ = 1 / 0
    after = noises(tiny, 600, *rows_of(tiny))
    assert all(torch.equal(a, b) for a, b in zip(before, after))
    assert torch.equal(before[0], during[0]) and torch.equal(before[1], during[1])
    assert not torch.allclose(before[2], during[2])


def test_cross_maps_are_the_sources_mapped(tiny):
    """Against the formula, on one layer: softmax(q k / sqrt d) of the source, mapped, times the target's values."""
    layer = tiny.unet.get_submodule(attention_layers(tiny.unet, "attn2")[0])
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn((3, 12, layer.query_dim), generator=generator)
    text = torch.randn((3, 5, 32), generator=generator)
    mapping, taken = torch.rand((5, 5), generator=generator), torch.tensor([1.0, 0.0, 1.0, 0.25, 1.0])

    def heads(x):
        return x.unflatten(-1, (layer.heads, -1)).transpose(1, 2)

    q, k, v = heads(layer.to_q(hidden)), heads(layer.to_k(text)), heads(layer.to_v(text))
    maps = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
    maps[2] = (maps[0] @ mapping) * taken + maps[2] * (1 - taken)
    truth = layer.to_out[0]((maps @ v).transpose(1, 2).flatten(2))
    plain = layer(hidden, encoder_hidden_states=text)
    with cross_maps_replaced(tiny.unet, 0, 2, mapping, taken):
        ours = layer(hidden, encoder_hidden_states=text)
    torch.testing.assert_close(ours, truth, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours[:2], plain[:2], atol=1e-5, rtol=1e-5)
    assert (ours[2] - plain[2]).abs().max() > 1e-3
    assert torch.equal(layer(hidden, encoder_hidden_states=text), plain)


def test_cross_maps_are_replaced_in_all_layers(tiny):
    before = {name: p for name, p in tiny.unet.attn_processors.items()}
    with cross_maps_replaced(tiny.unet, 0, 2, torch.eye(16), torch.ones(16)):
        changed = {n for n, p in tiny.unet.attn_processors.items() if p is not before[n]}
    assert changed == {f"{name}.processor" for name in attention_layers(tiny.unet, "attn2")}
    assert len(changed) == 7 and tiny.unet.attn_processors == before


# --- tokens


def test_words_with_one_token_each_map_straight(tiny):
    mapping, taken = token_mapping(tiny.text.tokenizers[0], "a cat", "a pig", 16)
    assert torch.equal(mapping, torch.eye(16)) and torch.equal(taken, torch.ones(16))


def test_a_word_of_several_tokens_shares_its_words_map():
    # <start> a cat sitting <end>  ->  <start> a x y z sitting <end>
    truth = torch.zeros(8, 8)
    for i, j, share in [
        (0, 0, 1),
        (1, 1, 1),
        (2, 2, 1 / 3),
        (2, 3, 1 / 3),
        (2, 4, 1 / 3),
        (3, 5, 1),
        (6, 6, 1),
        (7, 7, 1),
    ]:
        truth[i, j] = share  # fmt: skip
    assert torch.equal(by_words([1, 1, 1], [1, 3, 1], 8), truth)


def test_several_tokens_to_fewer_and_to_as_many():
    # two tokens to one: their sum
    truth = torch.eye(6)
    truth[:, 1] = torch.tensor([0.0, 1, 1, 0, 0, 0])
    truth[:, 2] = torch.tensor([0.0, 0, 0, 1, 0, 0])
    truth[:, 3] = torch.tensor([0.0, 0, 0, 1, 0, 0])
    assert torch.equal(by_words([2, 1], [1, 1], 6)[:, :3], truth[:, :3])
    assert torch.equal(by_words([1, 2], [1, 2], 6), torch.eye(6))


def test_words_that_are_cut_stay_in_place():
    assert torch.equal(by_words([1, 4], [1, 3], 6), torch.eye(6))
    assert torch.equal(by_words([1, 2], [1, 3], 6)[:, 2:5], torch.tensor([[0, 0, 1, 1, 0, 0]] * 3).T / 3)


def test_unequal_counts_are_aligned():
    # <start> a cat <end>  ->  <start> a red cat <end>: "red" is new
    mapping, taken = by_alignment([90, 1, 2, 91], [90, 1, 7, 2, 91], 7)
    assert taken.tolist() == [1, 1, 0, 1, 1, 1, 1]
    assert mapping.argmax(0)[[0, 1, 3, 4, 5, 6]].tolist() == [0, 1, 2, 3, 5, 6]
    assert torch.equal(mapping.sum(0), taken)
    # the other way round "red" has nowhere to go, and a changed word is no match
    mapping, taken = by_alignment([90, 1, 7, 2, 91], [90, 1, 8, 91], 6)
    assert taken.tolist() == [1, 1, 0, 1, 1, 1]
    assert mapping.argmax(0)[[0, 1, 3, 4, 5]].tolist() == [0, 1, 4, 4, 5]


def test_the_tokenizer_counts_words_and_tokens(tiny):
    tokenizer = tiny.text.tokenizers[0]
    k = len(tokenizer("zebu", add_special_tokens=False).input_ids)
    assert k > 1
    mapping, _ = token_mapping(tokenizer, "a cat", "a zebu", 16)
    assert torch.equal(mapping[2, 2 : 2 + k], torch.full((k,), 1 / k)) and mapping[2].sum() == pytest.approx(1)
    mapping, taken = token_mapping(tokenizer, "a cat", "a red cat", 16)
    assert taken.tolist() == [1, 1, 0] + [1] * 13 and mapping[2, 3] == 1 and mapping[3, 4] == 1

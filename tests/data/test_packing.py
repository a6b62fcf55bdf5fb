"""Packing: no sample lost, no pack too full, and the same samples in every optimizer step whatever the layout."""

from collections import Counter

import numpy as np
import pytest

from qwenvl.data.packing import PackSampler, SampleRef, plan_packs
from qwenvl.errors import UserError


def chest_xray_lengths(count: int) -> np.ndarray:
    """Return lengths like those of chest X-rays with their reports: some 400 image tokens and 50 to 300 of text."""
    rng = np.random.default_rng(7)
    image_tokens = rng.choice([391, 400, 414, 420, 432, 441, 450], count)
    return image_tokens + 40 + np.minimum(rng.lognormal(4.4, 0.5, count), 600).astype(int)


def optimizer_steps(packs, lengths, *, batch, replicas, accumulation, epoch=0):
    """Return for each optimizer step the multiset of samples that the processes draw together, padding left out."""
    samplers = [PackSampler(packs, batch, replicas, rank, seed=3, lengths=lengths) for rank in range(replicas)]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    micro_batches = [
        Counter(draw.index for rank_batch in batches for draw in rank_batch if not draw.is_padding)
        for batches in zip(*samplers, strict=True)
    ]
    return [
        sum(micro_batches[start : start + accumulation], Counter())
        for start in range(0, len(micro_batches), accumulation)
    ]


@pytest.mark.parametrize("lengths", [chest_xray_lengths(3000), np.arange(1, 2049), np.full(50, 4096), np.ones(9)])
def test_every_sample_is_in_exactly_one_pack_and_no_pack_is_over_its_capacity(lengths):
    packs = plan_packs(lengths, 4096)
    assert sorted(index for pack in packs for index in pack) == list(range(len(lengths)))
    assert max(lengths[pack].sum() for pack in packs) <= 4096


@pytest.mark.parametrize("capacity", [4096, 8192, 16384])
def test_packs_of_chest_xray_samples_are_at_least_97_percent_full(capacity):
    lengths = chest_xray_lengths(20_000)
    packs = plan_packs(lengths, capacity)
    assert lengths.sum() / (len(packs) * capacity) >= 0.97


def test_packs_of_widely_different_lengths_are_at_least_99_percent_full():
    lengths = np.random.default_rng(0).integers(1, 2049, 5000)
    assert lengths.sum() / (len(plan_packs(lengths, 4096)) * 4096) >= 0.99


def test_the_same_seed_gives_the_same_packs_and_another_seed_gives_others():
    lengths = chest_xray_lengths(500)
    assert plan_packs(lengths, 4096, seed=1) == plan_packs(list(lengths), 4096, seed=1)
    assert plan_packs(lengths, 4096, seed=1) != plan_packs(lengths, 4096, seed=2)


def test_a_sample_longer_than_a_pack_is_named():
    with pytest.raises(UserError, match=r"sample 2 has 101 tokens, but a pack holds 100"):
        plan_packs([5, 100, 101], 100)


def test_nothing_to_pack_gives_no_packs():
    assert plan_packs([], 100) == []


@pytest.mark.parametrize("epoch", [0, 1])
@pytest.mark.parametrize("layout", [(1, 1, 8), (4, 2, 1), (1, 2, 4), (2, 4, 1), (1, 8, 1)])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("count", [64, 61, 57])
def test_every_optimizer_step_sees_the_samples_of_batch_8_on_one_process(layout, packed, count, epoch):
    lengths = chest_xray_lengths(count)
    packs = plan_packs(lengths, 2048) if packed else [[index] for index in range(count)]
    batch, replicas, accumulation = layout
    expected = optimizer_steps(packs, lengths, batch=8, replicas=1, accumulation=1, epoch=epoch)
    steps = optimizer_steps(packs, lengths, batch=batch, replicas=replicas, accumulation=accumulation, epoch=epoch)
    assert steps == expected
    assert sum(steps, Counter()) == Counter(range(count))


def test_each_epoch_has_its_own_order_and_a_pass_can_be_repeated_exactly():
    lengths = chest_xray_lengths(40)
    sampler = PackSampler([[index] for index in range(40)], 4, 1, 0, seed=0, lengths=lengths)
    first = list(sampler)
    assert list(sampler) == first
    sampler.set_epoch(1)
    second = list(sampler)
    assert second != first
    sampler.set_epoch(0)
    assert list(sampler) == first


def test_another_seed_gives_another_order():
    lengths = chest_xray_lengths(40)
    packs = [[index] for index in range(40)]
    assert list(PackSampler(packs, 4, 1, 0, 0, lengths)) != list(PackSampler(packs, 4, 1, 0, 1, lengths))


def test_without_shuffling_the_samples_come_in_their_own_order():
    packs = [[0, 2], [1], [3]]
    sampler = PackSampler(packs, 1, 1, 0, seed=0, lengths=[1, 1, 1, 1], shuffle=False)
    assert list(sampler) == [[SampleRef(0), SampleRef(2)], [SampleRef(1)], [SampleRef(3)]]


@pytest.mark.parametrize("count", [1, 2, 9, 10, 11, 12])
def test_every_rank_yields_equally_many_batches_and_a_rank_left_with_nothing_draws_one_padding_sample(count):
    lengths = np.arange(count) + 10
    samplers = [PackSampler([[i] for i in range(count)], 2, 3, rank, seed=0, lengths=lengths) for rank in range(3)]
    batches = [list(sampler) for sampler in samplers]
    assert [len(rank_batches) for rank_batches in batches] == [len(samplers[0])] * 3
    draws = [draw for rank_batches in batches for batch in rank_batches for draw in batch]
    assert sorted(draw.index for draw in draws if not draw.is_padding) == list(range(count))
    for batch in (batch for rank_batches in batches for batch in rank_batches):
        assert batch and (batch == [SampleRef(0, is_padding=True)] or not any(draw.is_padding for draw in batch))


def test_packs_are_dealt_so_that_processes_get_about_as_many_tokens():
    lengths = np.random.default_rng(1).integers(100, 2000, 512)
    samplers = [PackSampler([[i] for i in range(512)], 8, 4, rank, seed=0, lengths=lengths) for rank in range(4)]
    spreads = []
    for batches in zip(*samplers, strict=True):
        tokens = [sum(int(lengths[draw.index]) for draw in batch) for batch in batches]
        assert [len(batch) for batch in batches] == [8] * 4
        spreads.append(max(tokens) / min(tokens))
    assert np.mean(spreads) < 1.05

"""Plan packs and batches: lengths of samples -> packs -> the micro-batches of each process."""

import heapq
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple, overload

import numpy as np

from qwenvl.errors import UserError

# Multiples of the golden ratio, modulo 1, are evenly distributed: a fraction f is rounded up in a share f of the cases.
_GOLDEN_RATIO = 0.6180339887498949


class SampleRef(NamedTuple):
    """One sample to load; a padding sample is loaded without supervised tokens, so that its weight is zero."""

    index: int
    is_padding: bool = False


class PackTable(Sequence[list[int]]):
    """Packs as two arrays, since a million lists take 100 MB: `indices` (n,), and the end of each pack in them (p,)."""

    def __init__(self, indices: np.ndarray, ends: np.ndarray) -> None:
        self.indices = indices
        self.ends = ends

    @classmethod
    def of(cls, packs: Iterable[Sequence[int]]) -> "PackTable":
        """Return the table of these packs."""
        if isinstance(packs, cls):
            return packs
        packs = [*packs]
        sizes = np.fromiter(map(len, packs), np.int64, len(packs))
        return cls(np.fromiter(chain.from_iterable(packs), np.int64, sizes.sum()), sizes.cumsum())

    @classmethod
    def singles(cls, count: int) -> "PackTable":
        """Return `count` packs of one sample each."""
        return cls(np.arange(count), np.arange(1, count + 1))

    @overload
    def __getitem__(self, number: int) -> list[int]: ...
    @overload
    def __getitem__(self, number: slice) -> list[list[int]]: ...
    def __getitem__(self, number: int | slice) -> list[int] | list[list[int]]:
        if isinstance(number, slice):
            return [self[each] for each in range(*number.indices(len(self)))]
        number = range(len(self))[number]
        return self.indices[self.ends[number - 1] if number else 0 : self.ends[number]].tolist()

    def __len__(self) -> int:
        return len(self.ends)

    def __eq__(self, other: object) -> bool:
        return [*self] == [*other] if isinstance(other, Sequence) else NotImplemented

    def tokens(self, lengths: np.ndarray) -> np.ndarray:
        """Return the tokens of each pack, (p,), from those of each sample, (n,)."""
        sums = np.concatenate([[0], lengths[self.indices].cumsum()])
        return np.diff(sums[np.concatenate([[0], self.ends])])


def renumber_packs(packs: Sequence[Sequence[int]], kept: np.ndarray) -> list[list[int]]:
    """Return packs with the new indices of the samples `kept`, (n,), without the samples that were left out."""
    # With a million samples the dictionary takes 150 MB.
    new_indices = {old: new for new, old in enumerate(kept.tolist())} if packs else {}
    renumbered = [[new_indices[index] for index in pack if index in new_indices] for pack in packs]
    return [pack for pack in renumbered if pack]


def complete_packs(
    given: Iterable[list[int]], lengths: np.ndarray, capacity: int, seed: int, describe: Callable[[int], str]
) -> PackTable:
    """Return the given packs of several samples, and packs planned for the remaining samples.

    `lengths` is (n,), in tokens. Raises `UserError` for a given pack over the capacity, naming its first sample by
    `describe`.
    """
    packs = [pack for pack in given if len(pack) > 1]
    for pack in packs:
        if lengths[pack].sum() > capacity:
            raise UserError(
                f"{describe(pack[0])}: its pack has {lengths[pack].sum()} tokens, expected at most "
                f"--model_max_length {capacity}: raise it, or pack the file again with tools/pack_data.py"
            )
    remaining = np.setdiff1d(np.arange(len(lengths)), [index for pack in packs for index in pack])
    planned = plan_pack_table(lengths[remaining], capacity, seed)
    planned = PackTable(remaining[planned.indices], planned.ends)
    return PackTable.of([*packs, *planned]) if packs else planned


def plan_packs(lengths: Sequence[int] | np.ndarray, capacity: int, seed: int = 0) -> list[list[int]]:
    """Return the packs of `plan_pack_table` as lists of sample indices."""
    return [*plan_pack_table(lengths, capacity, seed)]


def plan_pack_table(lengths: Sequence[int] | np.ndarray, capacity: int, seed: int = 0) -> PackTable:
    """Put every sample into exactly one pack of at most `capacity` tokens.

    `lengths` is (n,), in tokens. Two plans are computed and the one with fewer packs is returned: best-fit decreasing,
    which is better for widely varying lengths, and an even fill, which is better for similar ones. The result is
    deterministic. Raises `UserError` for a sample longer than a pack.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    if not len(lengths):
        return PackTable.of([])
    if lengths.max() > capacity:
        index = int(lengths.argmax())
        raise UserError(
            f"sample {index} has {lengths[index]} tokens, but a pack holds {capacity}; raise the capacity of the packs "
            "or leave the sample out"
        )
    order = np.random.default_rng(seed).permutation(len(lengths))
    # As tables, because two plans of a million samples as lists take hundreds of megabytes.
    plans = [PackTable.of(plan(lengths, order, capacity)) for plan in (_best_fit_decreasing, _even_fill)]
    return min(plans, key=len)


def _best_fit_decreasing(lengths: np.ndarray, order: np.ndarray, capacity: int) -> list[list[int]]:
    """Place samples from the longest to the shortest, each into the fullest pack with room for it (Johnson 1973)."""
    order = order[np.argsort(-lengths[order], kind="stable")]
    packs: list[list[int]] = []
    # Packs by their remaining room: with the rooms sorted, the fullest pack that fits is found by bisection.
    packs_by_room: dict[int, list[int]] = {}
    rooms: list[int] = []
    # `data` gives Python's integers one by one; a list of a million of them takes 40 MB.
    for index, length in zip(order.data, lengths[order].data, strict=True):
        position = bisect_left(rooms, length)
        if position == len(rooms):
            pack, room = len(packs), capacity
            packs.append([])
        else:
            room = rooms[position]
            pack = packs_by_room[room].pop()
            if not packs_by_room[room]:
                del packs_by_room[room], rooms[position]
        packs[pack].append(index)
        room -= length
        if room not in packs_by_room:
            insort(rooms, room)
        packs_by_room.setdefault(room, []).append(pack)
    return packs


class _Pool:
    """The samples not yet packed, indexed by length."""

    def __init__(self, lengths: np.ndarray, order: np.ndarray) -> None:
        self._samples: dict[int, list[int]] = {}
        for index, length in zip(order.data, lengths[order].data, strict=True):
            self._samples.setdefault(length, []).append(index)
        self.sizes = sorted(self._samples)
        self._count, self._tokens = len(lengths), int(lengths.sum())

    def __len__(self) -> int:
        return self._count

    @property
    def mean(self) -> float:
        return self._tokens / self._count

    def longest_within(self, room: int) -> int:
        """Return the greatest length of at most `room`; the shortest sample must fit."""
        return self.sizes[bisect_right(self.sizes, room) - 1]

    def nearest(self, wanted: float, room: int) -> int:
        """Return the length of at most `room` nearest to `wanted`; the shortest sample must fit."""
        above = bisect_left(self.sizes, wanted)
        candidates = [size for size in self.sizes[max(above - 1, 0) : above + 1] if size <= room]
        return min(candidates, key=lambda size: abs(size - wanted))

    def take(self, length: int) -> int:
        """Remove one sample of this length and return its index."""
        samples = self._samples[length]
        index = samples.pop()
        if not samples:
            del self._samples[length], self.sizes[bisect_left(self.sizes, length)]
        self._count -= 1
        self._tokens -= length
        return index


def _even_fill(lengths: np.ndarray, order: np.ndarray, capacity: int) -> list[list[int]]:
    """Start each pack with the longest remaining sample, then add samples near an equal share of the room left.

    A pack gets capacity / mean length samples, rounded up in as many cases as the fraction says, so that the mean of
    the remaining samples stays constant and the last packs are as full as the first. (Sorting alone packs similar
    lengths together, and seven samples of 540 tokens leave a gap in 4096 that no sample fits.)
    """
    pool = _Pool(lengths, order)
    packs: list[list[int]] = []
    fraction = 0.5
    while len(pool):
        fraction = (fraction + _GOLDEN_RATIO) % 1
        num_wanted = int(capacity / pool.mean + fraction) - 1
        length = pool.sizes[-1]
        pack, room = [pool.take(length)], capacity - length
        while len(pool) and room >= pool.sizes[0]:
            num_wanted = min(num_wanted, room // pool.sizes[0])
            length = pool.nearest(room / num_wanted, room) if num_wanted > 1 else pool.longest_within(room)
            pack.append(pool.take(length))
            room -= length
            num_wanted -= 1
        packs.append(pack)
    return packs


class PackSampler:
    """The batch sampler of one process: yields micro-batches as lists of `SampleRef`, for any number of workers.

    Each (seed, epoch) gives one permutation of the packs, cut into global micro-batches of `packs_per_batch *
    num_replicas` consecutive packs. An optimizer step therefore sees the same samples for one process with batch 8, for
    batch 1 with 8 accumulation steps, and for two processes. Within a global micro-batch the packs are assigned to the
    processes so that each gets about as many tokens; a process without a pack gets a padding sample.
    """

    def __init__(
        self,
        packs: Sequence[Sequence[int]],
        packs_per_batch: int,
        num_replicas: int,
        rank: int,
        seed: int,
        lengths: Sequence[int] | np.ndarray,
        shuffle: bool = True,
    ) -> None:
        if packs_per_batch < 1 or not 0 <= rank < num_replicas:
            raise ValueError(f"got {packs_per_batch=}, {rank=}, {num_replicas=}; expected 1 or more and rank below")
        self.packs = PackTable.of(packs)
        self.packs_per_batch = packs_per_batch
        self.num_replicas = num_replicas
        self.rank = rank
        self.seed = seed
        self.shuffle = shuffle
        self.epoch = 0
        lengths = np.asarray(lengths, dtype=np.int64)
        self._pack_tokens = self.packs.tokens(lengths)
        self._padding = SampleRef(int(lengths.argmin()), is_padding=True) if len(lengths) else None

    def set_epoch(self, epoch: int) -> None:
        """Choose the permutation of the next pass."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.packs) // (self.packs_per_batch * self.num_replicas))

    def __iter__(self) -> Iterator[list[SampleRef]]:
        return (batches[self.rank] for batches in self.all_batches())

    def all_batches(self) -> Iterator[list[list[SampleRef]]]:
        """Yield each global micro-batch as the micro-batches of all processes, by rank."""
        order = np.arange(len(self.packs))
        if self.shuffle:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(len(order))
        step = self.packs_per_batch * self.num_replicas
        for start in range(0, len(order), step):
            per_rank = self._assign(order[start : start + step].tolist())
            yield [
                [SampleRef(index) for pack in own for index in self.packs[pack]] or [self._padding] for own in per_rank
            ]

    def _assign(self, packs: list[int]) -> list[list[int]]:
        """Give each pack, from the longest to the shortest, to the process with the fewest tokens and still room."""
        per_rank: list[list[int]] = [[] for _ in range(self.num_replicas)]
        waiting = [(0, rank) for rank in range(self.num_replicas)]
        pack_tokens = dict(zip(packs, self._pack_tokens[packs].tolist(), strict=True))
        for pack in sorted(packs, key=lambda pack: -pack_tokens[pack]):
            tokens, rank = heapq.heappop(waiting)
            per_rank[rank].append(pack)
            if len(per_rank[rank]) < self.packs_per_batch:
                heapq.heappush(waiting, (tokens + pack_tokens[pack], rank))
        return per_rank

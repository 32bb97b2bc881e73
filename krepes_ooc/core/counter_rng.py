"""Counter-based random numbers: a draw depends on its key alone, never on the order of calls.

The generator is splitmix64 (Steele, Lea and Flood, 2014) applied to a chained key, so the same
(seed, stream, sample, column) gives the same number under any block size, batch or worker count.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

UInt64 = npt.NDArray[np.uint64]
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def mix(value: npt.ArrayLike) -> UInt64:
    """Scramble 64-bit integers by splitmix64; shape kept."""
    # The finaliser of splitmix64: 64-bit products and sums wrap around on purpose.
    z = np.asarray(value).astype(np.uint64)
    with np.errstate(over="ignore"):
        z = z + _GOLDEN
        z = (z ^ (z >> np.uint64(30))) * _MIX_1
        z = (z ^ (z >> np.uint64(27))) * _MIX_2
    return np.asarray(z ^ (z >> np.uint64(31)), dtype=np.uint64)


def bits(seed: int, *keys: npt.ArrayLike) -> UInt64:
    """64 random bits for each element of the broadcast integer ``keys``."""
    # Chained hash: state_0 = mix(seed), state_i = mix(state_{i-1} xor key_i).
    state = mix(np.uint64(seed % 2**64))
    for key in keys:
        state = mix(state ^ np.asarray(key).astype(np.int64).astype(np.uint64))
    return state


def uniform(seed: int, *keys: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Uniform numbers in [0, 1) for each element of the broadcast integer ``keys``."""
    # 53 bits are the mantissa of a float64: every multiple of 2^-53 is equally likely.
    return np.asarray((bits(seed, *keys) >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def normal(seed: int, *keys: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Standard normal numbers (Box and Muller) for each element of the broadcast ``keys``."""
    # Box and Muller: sqrt(-2 log u1) cos(2 pi u2), with 1 - u1 in (0, 1] so that the log exists.
    radius = np.sqrt(-2.0 * np.log1p(-uniform(seed, *keys, 1)))
    return np.asarray(radius * np.cos(2.0 * np.pi * uniform(seed, *keys, 2)))


def integers(seed: int, high: int, *keys: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Integers in [0, high), ``high`` at least 1, for each element of the broadcast ``keys``."""
    # The product can round up to ``high`` itself.
    return np.asarray(np.minimum((uniform(seed, *keys) * high).astype(np.int64), high - 1))


@dataclass(frozen=True)
class Bijection:
    """A keyed bijection of [0, size), computed per element: no n-sized table.

    A four-round Feistel network on the smallest even number of bits that holds ``size``, walked
    until it lands inside the range (cycle walking, Black and Rogaway 2002).
    """

    size: int
    seed: int

    def __call__(self, index: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Positions of the given indices, all in [0, size)."""
        # Cycle walking: apply the permutation again to whatever falls outside [0, size).
        value = np.array(index, dtype=np.int64, ndmin=1)
        pending = np.ones(value.shape, dtype=bool)
        while pending.any():
            value[pending] = self._rounds(value[pending])
            pending = value >= self.size
        return value.reshape(np.shape(index))

    def _rounds(self, value: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        # Half the bits of the smallest even-width domain that holds [0, size).
        half = max(1, (max(1, self.size - 1).bit_length() + 1) // 2)
        mask = np.int64((1 << half) - 1)
        left = value >> half
        right = value & mask
        # One Feistel round: (L, R) -> (R, L xor F(R)), invertible whatever the keyed F is.
        for turn in range(4):
            drawn = (bits(self.seed, turn, right) & np.uint64(mask)).astype(np.int64)
            left, right = right, left ^ drawn
        return (left << half) | right

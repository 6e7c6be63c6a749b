"""A key-value cache that is written in place.

transformers' DynamicCache concatenates at every token, which copies the whole cache each time;
with many rows that costs more than the model's own arithmetic.
"""

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import DynamicCache, DynamicLayer


class RoomyLayer(DynamicLayer):
    """Keys and values [rows, heads, length, size] as views of buffers with room for more.

    The prompt's pass leaves its tensors as they are; `reorder_cache` (rows repeated or dropped)
    makes buffers of `room` positions, and later tokens are written into them.
    """

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Add positions; returns all keys and values so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states, value_states
        else:
            end = self.keys.shape[-2] + key_states.shape[-2]
            self.key_buffer[:, :, end - key_states.shape[-2] : end] = key_states
            self.value_buffer[:, :, end - value_states.shape[-2] : end] = value_states
            self.keys = self.key_buffer[:, :, :end]
            self.values = self.value_buffer[:, :, :end]
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep these rows, in this order; a row may be named several times."""
        self.key_buffer, self.keys = self._take(self.keys, beam_idx)
        self.value_buffer, self.values = self._take(self.values, beam_idx)

    def _take(self, states: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        _, heads, length, size = states.shape
        buffer = states.new_empty((len(rows), heads, self.room, size))
        taken = buffer[:, :, :length]
        torch.index_select(states, 0, rows, out=taken)
        return buffer, taken


def roomy_cache(config: PreTrainedConfig, room: int) -> DynamicCache:
    """A cache for this model; layers other than plain full attention stay as the library's."""
    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer(room) if type(la) is DynamicLayer else la for la in cache.layers]
    return cache

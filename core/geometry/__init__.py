"""The shape of losses around a checkpoint: directions, slices, and how alike two of them are."""

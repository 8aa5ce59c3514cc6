"""The query cache: keys, the store with its epochs and bounds, and what the origin's catalog says about names."""

"""The query cache: keys, the store with its epochs and bounds, policies, single flight, and the origin's catalog."""

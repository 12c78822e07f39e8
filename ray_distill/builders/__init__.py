"""From a configuration to the objects of `core`: networks, data, batching, the experiment itself."""

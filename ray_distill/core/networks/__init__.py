"""Networks as pure functions of a flat parameter vector, their names, and groups of networks computed together."""

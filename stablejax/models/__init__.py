"""Energy models: Flax modules that give one energy per atom."""

"""The bases `english` and `english_raw` of adalink_jax; README.md is their card."""

"""JAX stays on the processor in these tests, whatever is installed beside it."""

import jax

jax.config.update("jax_platforms", "cpu")
